"""A process that reads mounts and keeps files open, for a test that must never do so itself.

It is started as `python -m tests.model.resident` and answers one line of JSON with another.
"""

import contextlib
import mmap
import os
import select
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0


class Read(NamedTuple):
    """What a read gave: so many bytes of this digest, then the end of the range or file, or an errno."""

    length: int
    digest: str
    error: int | None


def digest_of(data: bytes | bytearray | memoryview) -> str:
    return blake2b(data, digest_size=16).hexdigest()


class Resident:
    """The process, seen from the test."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.model.resident"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def read(self, place: str | int, offset: int, length: int, how: str = "pread") -> Read:
        """Read a path, or a file opened before, by its number."""
        found = self._ask(op="read", place=place, offset=offset, length=length, how=how)
        return Read(found["length"], found["digest"], found["error"])

    def open(self, path: str, number: int) -> int | None:
        """Open path as number; return the errno where that fails."""
        found: int | None = self._ask(op="open", path=path, number=number)["error"]
        return found

    def close_file(self, number: int) -> None:
        self._ask(op="close", number=number)

    def names(self, top: str) -> list[str] | int:
        """Return the files below top, sorted, or the errno."""
        found = self._ask(op="names", top=top)
        return found["error"] or list(found["names"])

    def end(self) -> None:
        self._process.kill()
        self._process.wait(WAIT_S)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(request) + b"\n")
        self._process.stdin.flush()
        out = self._process.stdout.fileno()
        answer = b""
        while not answer.endswith(b"\n"):
            assert select.select([out], [], [], WAIT_S)[0], f"no answer in {WAIT_S:g} s to {request}"
            data = os.read(out, 1 << 16)
            assert data, f"the reader ended on {request}"
            answer += data
        return dict(msgspec.json.decode(answer))


# ---- in the process ------------------------------------------------------------------------------


def _read(files: dict[int, int], place: str | int, offset: int, length: int, how: str) -> dict[str, Any]:
    found, error = bytearray(), None
    try:
        fd = os.open(place, os.O_RDONLY) if isinstance(place, str) else files[place]
    except OSError as failed:
        return {"length": 0, "digest": digest_of(b""), "error": failed.errno}
    try:
        if how == "mapped":
            return _in_child(fd, offset, length)
        while length > len(found) and (data := os.pread(fd, length - len(found), offset + len(found))):
            found += data
    except OSError as failed:
        error = failed.errno
    finally:
        if isinstance(place, str):
            os.close(fd)
    return {"length": len(found), "digest": digest_of(found), "error": error}


def _in_child(fd: int, offset: int, length: int) -> dict[str, Any]:
    """By a map, in a child: what a missing page brings is SIGBUS."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            stop = min(offset + length, os.fstat(fd).st_size)
            data = b""
            if offset < stop:
                with mmap.mmap(fd, stop, prot=mmap.PROT_READ) as pages:
                    data = pages[offset:stop]
            os.write(writer, f"{len(data)} {digest_of(data)}".encode())
            code = 0
        except OSError as failed:  # mmap itself asks the mount for attributes
            os.write(writer, f"- {failed.errno}".encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read().decode().split()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return {"length": 0, "digest": digest_of(b""), "error": -os.WTERMSIG(status)}
    assert status == 0, status
    if said[0] == "-":
        return {"length": 0, "digest": digest_of(b""), "error": int(said[1])}
    return {"length": int(said[0]), "digest": said[1], "error": None}


def _names(top: str) -> dict[str, Any]:
    def failed(error: OSError) -> None:
        raise error

    try:
        names = [
            os.path.relpath(os.path.join(directory, name), top)
            for directory, _, files in os.walk(top, onerror=failed)
            for name in files
        ]
    except OSError as error:
        return {"names": [], "error": error.errno}
    return {"names": sorted(names), "error": None}


def _open(files: dict[int, int], path: str, number: int) -> dict[str, Any]:
    try:
        files[number] = os.open(path, os.O_RDONLY)
    except OSError as error:
        return {"error": error.errno}
    return {"error": None}


def _close(files: dict[int, int], number: int) -> dict[str, Any]:
    os.close(files.pop(number))
    return {}


def main() -> None:
    files: dict[int, int] = {}
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line)
        op = request.pop("op")
        if op == "names":
            answer = _names(**request)
        elif op == "read":
            answer = _read(files, **request)
        elif op == "open":
            answer = _open(files, **request)
        else:
            answer = _close(files, **request)
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
