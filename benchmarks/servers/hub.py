"""A Hub on loopback: the API, resolve, and a CDN behind signed URLs that expire.

python -m benchmarks.servers.hub DIR --port 0      serves DIR/<org>/<name> and DIR/datasets/<org>/<name>
"""

import argparse
import base64
import hashlib
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote, urlencode

from benchmarks.servers.cdn import Cdn
from benchmarks.servers.faults import Faults
from benchmarks.servers.repositories import Commit, Entry, Files, FileVersion, Repositories, Repository
from benchmarks.servers.serving import Exchange, Ledger, Listener, Request

_REPO = r"([^/]+(?:/[^/]+)?)"
_API = re.compile(rf"/api/(models|datasets)/{_REPO}(?:/(revision|tree|refs)(?:/([^/]+)(?:/(.*))?)?)?")
_RESOLVE = re.compile(rf"/(datasets/)?{_REPO}/resolve/([^/]+)/(.+)")
_RESOLVE_CACHE = re.compile(rf"/api/resolve-cache/(models|datasets)/{_REPO}/([0-9a-f]{{40}})/(.+)")


@dataclass(frozen=True)
class Token:
    """What the holder of a token may do: read these private repositories, these gated ones' files."""

    reads: frozenset[str] = frozenset()
    accepted: frozenset[str] = frozenset()


class _RefusalError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class HubServer:
    """A Hub over a directory; serves from `start()` (or `with`) to `stop()`, and again after it.

    The directory's repositories, laid out as the command's are, become commits on `main`.

    page_size:         entries in one answer of the tree API at most
    link_lifetime_s:   how long a signed CDN URL is good for, by `clock`
    resolve_cache:     small files are answered by way of a relative redirect, as huggingface.co does
    cdn_host:          the CDN's loopback address; its port is always another than the Hub's
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        cdn_host: str | None = None,
        page_size: int = 1000,
        link_lifetime_s: float = 3600.0,
        resolve_cache: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.page_size = page_size
        self.resolve_cache = resolve_cache
        self.faults = Faults()
        self.tokens: dict[str, Token] = {}
        self._addresses = [(host, port), (cdn_host or host, 0)]
        self._ledger = Ledger()
        self._listeners: list[Listener] = []
        directory = Path(directory)
        self._repositories = Repositories(directory / ".objects")
        self._cdn = Cdn(self._repositories, link_lifetime_s, clock)
        for kind, parent in (("models", directory), ("datasets", directory / "datasets")):
            for found in sorted(parent.glob("[!.]*/[!.]*/")):
                if found.is_dir() and (kind == "datasets" or found.parent.name != "datasets"):
                    self.commit(f"{found.parent.name}/{found.name}", found, kind=kind)

    # ---- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen, on the ports of last time if there was one."""
        if not self._listeners:
            for place, answer in enumerate((self._answer_hub, self._cdn.answer)):
                listener = Listener(self._addresses[place], answer, self._ledger, self.faults)
                self._addresses[place] = (self._addresses[place][0], listener.port)
                self._listeners.append(listener)
            self._cdn.url = self.cdn_url

    def stop(self) -> None:
        """Refuse connections and end those there are; `start()` serves the same again."""
        while self._listeners:
            self._listeners.pop().close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ---- what is served ------------------------------------------------------------------------

    def commit(
        self,
        repo: str,
        files: Files,
        branch: str = "main",
        *,
        kind: str = "models",
        tree: Sequence[Entry] | None = None,
    ) -> str:
        """Make files (contents by path, or a directory) the whole content of branch; return the sha.

        tree: raw entries for the API to list instead, however hostile. Old commits stay served.
        """
        return self._repositories.commit(repo, files, branch, kind, tree)

    def tag(self, repo: str, tag: str, sha: str, *, kind: str = "models") -> None:
        """Let tag name the commit sha."""
        self.repository(repo, kind=kind).tags[tag] = sha

    def repository(self, repo: str, *, kind: str = "models") -> Repository:
        """Return a repository, for its `private`, `gated` and `branches`; KeyError if there is none."""
        found = self._repositories.get(repo, kind)
        if found is None:
            raise KeyError(repo)
        return found

    def token(self, token: str, *, reads: Collection[str] = (), accepted: Collection[str] = ()) -> str:
        """Make token a valid one, which may read private `reads` and files of the gated `accepted`."""
        self.tokens[token] = Token(frozenset(reads), frozenset(accepted))
        return token

    def expire_links(self) -> None:
        """Make every signed URL given out so far an expired one."""
        self._cdn.expire_links()

    # ---- what was asked ------------------------------------------------------------------------

    @property
    def url(self) -> str:
        host, port = self._addresses[0]
        return f"http://{host}:{port}"

    @property
    def cdn_url(self) -> str:
        host, port = self._addresses[1]
        return f"http://{host}:{port}"

    @property
    def requests(self) -> list[Request]:
        """(method, path, range, status) of every request since the last reset, CDN included."""
        return list(self._ledger.requests)

    @property
    def bytes_sent(self) -> int:
        """Bytes of file content sent since the last reset; listings and headers don't count."""
        return self._ledger.bytes_sent

    @property
    def stray_authorizations(self) -> list[str]:
        """Authorization headers that arrived at the CDN; a good client sends none."""
        return list(self._ledger.strays)

    def reset(self) -> None:
        """Forget requests, counted bytes and stray headers; faults stay."""
        self._ledger.reset()

    # ---- the Hub's answers ---------------------------------------------------------------------

    def _answer_hub(self, exchange: Exchange) -> None:
        try:
            if exchange.target == "/_stats":
                stats = {"bytes_sent": self.bytes_sent, "requests": len(self._ledger.requests)}
                _respond_json(exchange, stats)
            elif match := _RESOLVE_CACHE.fullmatch(exchange.target):
                repository, commit = self._find(exchange, match[1], match[2], match[3], contents=True)
                self._respond_small(exchange, commit, _file(commit, match[4]))
            elif match := _API.fullmatch(exchange.target):
                self._answer_api(exchange, match[1], match[2], match[3], match[4], match[5] or "")
            elif match := _RESOLVE.fullmatch(exchange.target):
                kind = "datasets" if match[1] else "models"
                repository, commit = self._find(exchange, kind, match[2], match[3], contents=True)
                self._resolve(exchange, repository, commit, _file(commit, match[4]))
            else:
                raise _RefusalError(404, "", "Sorry, we can't find the page you are looking for.")
        except _RefusalError as refusal:
            headers = {"X-Error-Message": refusal.message, "Content-Type": "application/json"}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            exchange.respond(refusal.status, json.dumps({"error": refusal.message}).encode(), headers)

    def _answer_api(
        self, exchange: Exchange, kind: str, repo: str, view: str | None, revision: str | None, under: str
    ) -> None:
        repository, commit = self._find(exchange, kind, repo, revision or "main", contents=False)
        if view == "tree":
            self._list(exchange, commit, unquote(under))
        elif view == "refs":
            branches, tags = repository.branches, repository.tags
            _respond_json(
                exchange,
                {
                    "branches": [_ref("heads", name, sha) for name, sha in branches.items()],
                    "converts": [],
                    "tags": [_ref("tags", name, sha) for name, sha in tags.items()],
                },
            )
        else:
            _respond_json(exchange, _info(repository, commit, blobs="blobs" in exchange.query))

    def _list(self, exchange: Exchange, commit: Commit, under: str) -> None:
        recursive = exchange.query.get("recursive", "").lower() in ("true", "1")
        entries = commit.entries(under, recursive=recursive)
        if under and not entries:
            raise _RefusalError(404, "EntryNotFound", f"{under} does not exist on this revision")
        try:
            start = int(base64.urlsafe_b64decode(exchange.query.get("cursor", "") or b"MA=="))
            size = max(1, min(int(exchange.query.get("limit", self.page_size)), self.page_size))
        except ValueError:
            raise _RefusalError(400, "", "Invalid cursor or limit") from None
        headers = {}
        if start + size < len(entries):
            cursor = base64.urlsafe_b64encode(str(start + size).encode()).decode()
            query = urlencode({**exchange.query, "limit": size, "cursor": cursor})
            headers["Link"] = f'<{self.url}{exchange.target}?{query}>; rel="next"'
        _respond_json(exchange, entries[start : start + size], headers)

    def _resolve(self, exchange: Exchange, repository: Repository, commit: Commit, file: FileVersion) -> None:
        headers = {"X-Repo-Commit": commit.sha}
        if file.sha256 is None and not self.resolve_cache:
            self._respond_small(exchange, commit, file)
            return
        if file.sha256 is None:
            headers |= {"ETag": f'"{file.oid}"', "X-Linked-Size": str(file.size)}
            place = f"/api/resolve-cache/{repository.kind}/{repository.name}/{commit.sha}/{quote(file.path)}"
            exchange.respond(307, b"", {**headers, "Location": place})
            return
        headers |= {
            "X-Linked-Size": str(file.size),
            "X-Linked-ETag": f'"{file.sha256}"',
            "Accept-Ranges": "bytes",
            "Location": self._cdn.link(repository, file.sha256, file.path),
        }
        exchange.respond(302, b"Found. Redirecting\n", headers)

    def _respond_small(self, exchange: Exchange, commit: Commit, file: FileVersion) -> None:
        exchange.respond_file(file.object, f'"{file.oid}"', {"X-Repo-Commit": commit.sha})

    def _find(
        self, exchange: Exchange, kind: str, name: str, revision: str, *, contents: bool
    ) -> tuple[Repository, Commit]:
        """Return what is asked for; raise _RefusalError where the Hub would refuse.

        The Hub lists a gated repository to everyone and refuses only its files' contents.
        """
        name, revision = unquote(name), unquote(revision)
        header = exchange.headers.get("Authorization")
        token = self.tokens.get(header.removeprefix("Bearer ")) if header else None
        if header and token is None:
            raise _RefusalError(401, "", "Invalid credentials in Authorization header")
        repository = self._repositories.get(name, kind)
        if repository is None or (repository.private and (token is None or name not in token.reads)):
            if token is None:
                raise _RefusalError(401, "RepoNotFound", "Invalid username or password.")
            raise _RefusalError(404, "RepoNotFound", "Repository not found")
        if contents and repository.gated and (token is None or name not in token.accepted):
            restricted = f"Access to {kind.removesuffix('s')} {name} is restricted"
            if token is None:
                what_next = "You must have access to it and be authenticated to access it. Please log in."
                raise _RefusalError(401, "GatedRepo", f"{restricted}. {what_next}")
            page = f"{self.url}/{'datasets/' if kind == 'datasets' else ''}{name}"
            what_next = f"you are not in the authorized list. Visit {page} to ask for access."
            raise _RefusalError(403, "GatedRepo", f"{restricted} and {what_next}")
        commit = repository.find(revision)
        if commit is None:
            raise _RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit


def _file(commit: Commit, path: str) -> FileVersion:
    file = commit.files.get(unquote(path))
    if file is None:
        raise _RefusalError(404, "EntryNotFound", "Entry not found")
    return file


def _info(repository: Repository, commit: Commit, *, blobs: bool) -> dict[str, Any]:
    listed = [entry for entry in commit.entries("", recursive=True) if entry.get("type") == "file"]
    siblings = [{"rfilename": entry.get("path")} for entry in listed]
    if blobs:
        for sibling, entry in zip(siblings, listed, strict=True):
            sibling |= {"size": entry.get("size"), "blobId": entry.get("oid")}
            if lfs := entry.get("lfs"):
                sibling["lfs"] = {
                    "sha256": lfs["oid"],
                    "size": lfs["size"],
                    "pointerSize": lfs["pointerSize"],
                }
    return {
        "_id": hashlib.sha1(repository.name.encode()).hexdigest()[:24],
        "id": repository.name,
        "modelId": repository.name,
        "author": repository.name.partition("/")[0],
        "sha": commit.sha,
        "createdAt": "2026-01-01T00:00:00.000Z",
        "lastModified": "2026-01-01T00:00:00.000Z",
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": siblings,
    }


def _ref(space: str, name: str, sha: str) -> dict[str, str]:
    return {"name": name, "ref": f"refs/{space}/{name}", "targetCommit": sha}


def _respond_json(exchange: Exchange, value: object, headers: dict[str, str] | None = None) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    exchange.respond(200, json.dumps(value).encode(), headers)


def _set_at_eof(ended: threading.Event) -> None:
    sys.stdin.buffer.read()
    ended.set()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.servers.hub", description=__doc__)
    parser.add_argument("directory", type=Path, help="holds <org>/<name>/ and datasets/<org>/<name>/")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one (default)")
    parser.add_argument("--link-lifetime", type=float, default=3600.0, metavar="SECONDS")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does")
    options = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    if options.until_eof:
        threading.Thread(target=_set_at_eof, args=(ended,), daemon=True).start()
    hub = HubServer(
        options.directory, host=options.host, port=options.port, link_lifetime_s=options.link_lifetime
    )
    with hub:
        print(hub.url, flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
