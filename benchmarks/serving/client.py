"""A peer that wants a lot: python -m benchmarks.serving.client URL PATHS [--seconds S] [--rate BYTES] [--connections N]

Asks for the paths in turn, over connections that stay open, reads what comes and throws it away: as little work as a
client can have, so that it is the server that is measured. Prints one JSON object.
"""

import argparse
import json
import socket
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

_BUFFER_BYTES = 1 << 20
_ONCE_S = 120.0
_HEAD_BYTES_MAX = 1 << 16


class _Peer(threading.Thread):
    """One connection. bytes: of answers that were whole chunks; refused: other answers; rounds: again and again"""

    def __init__(
        self,
        address: tuple[str, int],
        requests: list[bytes],
        until_s: float,
        rate: float | None,
        *,
        rounds: bool,
    ) -> None:
        super().__init__(daemon=True)
        self._address, self._requests, self._until_s, self._rate = address, requests, until_s, rate
        self._rounds = rounds
        self.failed: Exception | None = None
        self.bytes = self.refused = 0

    def run(self) -> None:
        try:
            self._ask()
        except Exception as error:
            self.failed = error

    def _ask(self) -> None:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        began_s = time.monotonic()
        with socket.create_connection(self._address, 30) as connection:
            turn = 0
            while time.monotonic() < self._until_s and (self._rounds or turn < len(self._requests)):
                connection.sendall(self._requests[turn % len(self._requests)])
                turn += 1
                status, size = _answer(connection, buffer)
                if status in (200, 206):
                    self.bytes += size
                else:
                    self.refused += 1
                    time.sleep(0.05)
                if self._rate is not None:
                    early_s = self.bytes / self._rate - (time.monotonic() - began_s)
                    time.sleep(max(0.0, early_s))


def _answer(connection: socket.socket, buffer: memoryview) -> tuple[int, int]:
    """Read one answer to its end; return its status and its length."""
    head, end = b"", -1
    while end < 0:
        piece = connection.recv(4096)
        if not piece or len(head) > _HEAD_BYTES_MAX:
            raise ConnectionError("the server ended the connection")
        head += piece
        end = head.find(b"\r\n\r\n")
    lines = head[:end].decode("latin-1").split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines[1:])
    size = int(fields["content-length"])
    left = size - (len(head) - end - 4)
    while left:
        count = connection.recv_into(buffer[: min(left, len(buffer))])
        if not count:
            raise ConnectionError("the server ended the connection in the middle of an answer")
        left -= count
    return int(lines[0].split(" ")[1]), size


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.client", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("paths", type=Path, help="a JSON list of [path, bytes]")
    parser.add_argument("--seconds", type=float, help="how long, again and again; without: each path once")
    parser.add_argument("--rate", type=float, help="bytes per second at most, of all connections")
    parser.add_argument("--connections", type=int, default=2)
    options = parser.parse_args()
    parts = urlsplit(options.url)
    assert parts.hostname is not None
    assert parts.port is not None
    requests = [
        f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nRange: bytes=0-{size - 1}\r\n\r\n".encode()
        for path, size in json.loads(options.paths.read_text())
    ]
    began_s = time.monotonic()
    rate = options.rate / options.connections if options.rate else None
    until_s = began_s + (options.seconds or _ONCE_S)
    shares = [requests[number :: options.connections] for number in range(options.connections)]
    peers = [
        _Peer(
            (parts.hostname, parts.port),
            requests[number:] + requests[:number] if options.seconds else shares[number],
            until_s,
            rate,
            rounds=options.seconds is not None,
        )
        for number in range(options.connections)
    ]
    for peer in peers:
        peer.start()
    for peer in peers:
        peer.join()
    for peer in peers:
        if peer.failed is not None:
            sys.exit(f"asking {options.url}: {peer.failed}")
    seconds = time.monotonic() - began_s
    sent = sum(peer.bytes for peer in peers)
    print(json.dumps({"bytes": sent, "seconds": seconds, "refused": sum(peer.refused for peer in peers)}))


if __name__ == "__main__":
    main()
