"""Requests as bytes on a connection, for what no client library would do."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.serve.served import Served


def target_of(opened: dict[str, Any]) -> str:
    """Return where the manifest is that `resolve` named."""
    resolved = opened["resolved"]
    return (
        f"/{opened['origin']['bucket']}/bdn/{resolved['org_id']}/weights/{resolved['target']['relative_key']}"
    )


@contextlib.contextmanager
def connected(service: Served, buffer_bytes: int | None = None) -> Iterator[socket.socket]:
    """Give a plain connection to the service; buffer_bytes: how little it takes unread."""
    parts = urlsplit(service.url)
    with socket.socket() as client:
        if buffer_bytes is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        client.settimeout(60)
        client.connect((parts.hostname, parts.port))
        yield client


def refuses(service: Served) -> bool:
    """Say whether the service takes no connection any more."""
    try:
        with connected(service):
            return False
    except ConnectionError:
        return True


def request(method: str, target: str, headers: dict[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode()


def largest(service: Served, mirror: str) -> tuple[str, dict[str, Any], int]:
    """Return the target of the largest object, credentials for it, and its size in bytes."""
    opened = service.opened("acme", "tiny")
    objects = [path for path in (Path(mirror) / "bdn").rglob("*") if path.is_file()]
    path = max(objects, key=lambda each: each.stat().st_size)
    return f"/{opened['origin']['bucket']}/{path.relative_to(mirror)}", opened["origin"], path.stat().st_size
