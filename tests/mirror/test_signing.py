"""What a signature covers of an upload: all of it on plain http; over TLS not a chunk's content."""

import http.server
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from bdnfs.mirror.opening import open_store
from bdnfs.spec.upstream import UpstreamConfig
from bdnfs.volume.records import CHUNK_TYPE, MANIFEST_TYPE

UNSIGNED = "UNSIGNED-PAYLOAD"


class Noting(http.server.ThreadingHTTPServer):
    """Takes every PUT and notes what its signature says of the content, by key."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.signed: dict[str, str] = {}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Noting

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.signed[self.path.rpartition("/")[2]] = self.headers["x-amz-content-sha256"]
        self.send_response(200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


@pytest.fixture
def server() -> Iterator[Noting]:
    with Noting() as noting:
        yield noting


@pytest.mark.parametrize("tls", [True, False])
def test_what_is_signed(server: Noting, tmp_path: Path, tls: bool) -> None:
    if tls:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    aws = {
        "AWS_ENDPOINT_URL": f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "hidden-key",
    }
    if tls:
        aws["AWS_CA_BUNDLE"] = str(tmp_path / "ca.pem")
    upstream = UpstreamConfig(aws=aws, stall_s=10)
    store = open_store("s3://bucket", upstream, None)
    for key, kind in (("chunk", CHUNK_TYPE), ("manifest", MANIFEST_TYPE)):
        assert store.put(f"bdn/{key}", b"content", kind, "any")
    store.close()
    server.shutdown()
    assert (server.signed["chunk"] == UNSIGNED) == tls
    assert server.signed["manifest"] not in (UNSIGNED, None)
