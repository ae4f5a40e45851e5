"""Servers that lend credentials and say what they were asked; each of them on loopback, from `with` on."""

import http.server
import json
import threading
import time
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit


class Asked(NamedTuple):
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.body.decode()).items()}


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: Mapping[str, str] = MappingProxyType({})


class Server:
    """Answers with what `answer` makes of a request; certificate: speak TLS with it."""

    def __init__(self, certificate: str | None = None) -> None:
        self.asked: list[Asked] = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.command, self.path, headers, body)
                owner.asked.append(asked)
                answer = owner.answer(asked)
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body)

            do_GET = do_POST  # noqa: N815
            do_HEAD = do_POST  # noqa: N815

            def log_message(self, format: str, *words: Any) -> None:
                """Say nothing."""

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, address: Any) -> None:
                """A client that goes away is no news."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"
        if certificate:
            import ssl

            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def answer(self, asked: Asked) -> Answer:
        raise NotImplementedError

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


NAMESPACE = "https://sts.amazonaws.com/doc/2011-06-15/"


class StsServer(Server):
    """An STS that lends numbered keys for lifetime_s. refusal: (status, code) to answer instead."""

    def __init__(self, lifetime_s: float = 3600.0, certificate: str | None = None) -> None:
        super().__init__(certificate)
        self.lifetime_s = lifetime_s
        self.refusal: tuple[int, str] | None = None
        self.token = "sts-session"
        self._lent: dict[str, float] = {}

    @property
    def lent(self) -> int:
        return len(self._lent)

    def is_good(self, session: str | None) -> bool:
        """Say whether a session token was lent and has not expired."""
        return time.time() < self._lent.get(session or "", 0.0)

    def revoke(self) -> None:
        """Make everything lent so far useless, whatever was promised."""
        self._lent = dict.fromkeys(self._lent, 0.0)

    def answer(self, asked: Asked) -> Answer:
        if self.refusal:
            status, code = self.refusal
            said = asked.form.get("WebIdentityToken", "") + asked.headers.get("authorization", "")
            error = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{said}</Message></Error>"
            return Answer(status, f'<ErrorResponse xmlns="{NAMESPACE}">{error}</ErrorResponse>'.encode())
        action = asked.form["Action"]
        number, expires_s = self.lent + 1, time.time() + self.lifetime_s
        session = f"{self.token}-{number}"
        self._lent[session] = expires_s
        until = (
            time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(expires_s)) + f".{int(expires_s % 1 * 1000):03}Z"
        )
        keys = (
            f"<AccessKeyId>ASIA{number}</AccessKeyId><SecretAccessKey>secret-{session}</SecretAccessKey>"
            f"<SessionToken>{session}</SessionToken><Expiration>{until}</Expiration>"
        )
        result = f"<{action}Result><Credentials>{keys}</Credentials></{action}Result>"
        return Answer(200, f'<{action}Response xmlns="{NAMESPACE}">{result}</{action}Response>'.encode())


class BucketServer(Server):
    """An S3 with one object at any key, for whoever shows a session that the STS still stands by."""

    def __init__(self, sts: StsServer, content: bytes) -> None:
        super().__init__()
        self._sts, self._content = sts, content
        self.refused = 0

    def answer(self, asked: Asked) -> Answer:
        if not self._sts.is_good(asked.headers.get("x-amz-security-token")):
            self.refused += 1
            return Answer(400, b"<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>")
        headers = {"ETag": '"v1"', "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT", "Accept-Ranges": "bytes"}
        size = len(self._content)
        if asked.method == "HEAD":
            return Answer(200, b"", {**headers, "Content-Length": str(size)})
        first, _, last = asked.headers["range"].removeprefix("bytes=").partition("-")
        start, stop = int(first), min(size, int(last) + 1)
        said = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        return Answer(206, self._content[start:stop], said)


class GoogleServer(Server):
    """Google's token endpoints. lifetime_s: of what it lends; refusals: (status, error) by the end of a path."""

    def __init__(self, lifetime_s: float = 3600.0, certificate: str | None = None) -> None:
        super().__init__(certificate)
        self.lifetime_s = lifetime_s
        self.refusals: dict[str, tuple[int, Any]] = {}
        self.token = "ya29.lent"
        self.lent = 0

    def answer(self, asked: Asked) -> Answer:
        path = urlsplit(asked.path).path
        for end, (status, error) in self.refusals.items():
            if path.endswith(end):
                said = {"error": error, "error_description": asked.body.decode(errors="replace")}
                return Answer(status, json.dumps(said).encode())
        if path == "/v1/token":
            found = {"access_token": "ya29.federated", "expires_in": 3600, "token_type": "Bearer"}
            found["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token"
        elif path == "/token":
            self.lent += 1
            found = {"access_token": f"{self.token}-{self.lent}", "expires_in": self.lifetime_s}
        elif path.endswith(":generateAccessToken"):
            self.lent += 1
            until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + self.lifetime_s))
            found = {"accessToken": f"{self.token}-{self.lent}", "expireTime": until}
        else:
            return Answer(404, b"{}")
        return Answer(200, json.dumps(found).encode(), {"Content-Type": "application/json"})
