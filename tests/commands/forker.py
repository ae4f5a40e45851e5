"""Starts `bdnfs` by forking a process that has imported it: a tenth of what an interpreter's start costs.

What runs is bdnfs.cli.main in a process of its own, in a session of its own, with its own environment
and output. Where the start itself is the matter (imports, argv, another user), tests exec the command.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_libc = ctypes.CDLL(None, use_errno=True)


class Forker:
    """The parent of the commands, seen from the tests.

    module: what it runs as, where more than this file imports is to be there already; environment: its own
    """

    def __init__(
        self, module: str = "tests.commands.forker", environment: dict[str, str] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._ended: dict[int, int] = {}
        self._buffer = b""

    def start(self, **request: Any) -> "Forked":
        """Start a command; words, environment, cwd, out, err, network as `_become` takes them."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        while (message := self._next(60)) and "started" not in message:
            self._note(message)
        assert message is not None, "the forker does not answer"
        return Forked(self, message["started"])

    def code(self, pid: int, limit_s: float) -> int | None:
        """Return the exit code of pid, or None where it still runs after limit_s."""
        deadline = time.monotonic() + limit_s
        while pid not in self._ended:
            message = self._next(max(0.0, deadline - time.monotonic()))
            if message is None:
                return None
            self._note(message)
        return self._ended[pid]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)

    def _note(self, message: dict[str, int]) -> None:
        self._ended[message["ended"]] = message["code"]

    def _next(self, limit_s: float) -> dict[str, int] | None:
        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            if not select.select([out], [], [], limit_s)[0] or not (data := os.read(out, 65536)):
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return dict(json.loads(line))


class Forked:
    """A command that was forked, with what subprocess.Popen has."""

    def __init__(self, forker: Forker, pid: int) -> None:
        self._forker = forker
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout: float) -> int:
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("bdnfs", timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _wait(self, limit_s: float) -> int | None:
        if self.returncode is None:
            self.returncode = self._forker.code(self.pid, limit_s)
        return self.returncode


def _become(request: dict[str, Any]) -> None:
    """Be the command. network: the path of a network namespace to be in, where there is one."""
    os.setsid()
    if "network" in request:
        fd = os.open(request["network"], os.O_RDONLY | os.O_CLOEXEC)
        if _libc.setns(fd, 0):
            raise OSError(ctypes.get_errno(), f"entering {request['network']}")
        os.close(fd)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for fd, path in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
        opened = os.open(path, os.O_RDWR if fd else os.O_RDONLY)
        os.dup2(opened, fd)
        os.close(opened)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["bdnfs", *request["words"]]
    code: Any = 1
    try:
        from bdnfs.cli import main

        main()
    except SystemExit as error:
        code = error.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


def serve_forks() -> None:
    import bdnfs.cli.cache
    import bdnfs.cli.doctor
    import bdnfs.cli.mount
    import bdnfs.cli.plan
    import bdnfs.cli.run
    import bdnfs.origins.hub
    import bdnfs.origins.hub_revision
    import bdnfs.session.filling
    import bdnfs.session.mounting  # noqa: F401

    answers, requests = os.dup(1), os.dup(0)
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_inheritable(answers, False)
    os.set_inheritable(requests, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def say(**message: int) -> None:
        os.write(answers, json.dumps(message).encode() + b"\n")

    buffer = b""
    while True:
        ready, _, _ = select.select([requests, reader], [], [])
        if reader in ready:
            os.read(reader, 4096)
            while (ended := _reap()) is not None:
                say(ended=ended[0], code=ended[1])
        if requests in ready:
            data = os.read(requests, 1 << 20)
            if not data:
                return
            buffer += data
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                pid = os.fork()
                if pid == 0:
                    for fd in (answers, requests, reader, writer):
                        os.close(fd)
                    _become(json.loads(line))
                say(started=pid)


def _reap() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


if __name__ == "__main__":
    serve_forks()
