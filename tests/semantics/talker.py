"""A reader in a process of its own: what it touches may be FUSE, and it can be killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.commands.node import WAIT_S, Command, Node, until

_LOOP = """
import errno, hashlib, json, mmap, os, sys
scope = dict(globals())
print("ready", flush=True)
for line in sys.stdin:
    try:
        said = eval(json.loads(line), scope)
    except OSError as error:
        said = errno.errorcode.get(error.errno, str(error))
    print(json.dumps(said.hex() if isinstance(said, bytes) else said, default=str), flush=True)
"""


class Talker:
    """Evaluates one expression after the other in one process; an OSError is its errno's name.

    Bytes come back as hex, what JSON has no word for as str.
    """

    def __init__(self, node: Node, *, cwd: Path | str = "/") -> None:
        self.command: Command = node.start_program(
            sys.executable, "-I", "-c", _LOOP, how={"stdin": subprocess.PIPE, "cwd": cwd}
        )
        self._stdin = self.command.process.stdin  # type: ignore[union-attr]
        self._heard = 0
        self.hear()

    def __enter__(self) -> "Talker":
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self.command.process.pid

    def say(self, expression: str) -> None:
        """Let it evaluate this; `hear` tells what came of it."""
        assert self._stdin is not None
        self._stdin.write(json.dumps(expression).encode() + b"\n")
        self._stdin.flush()

    def hear(self, limit_s: float = WAIT_S) -> Any:
        """Return what the next answer is."""

        def line() -> list[str]:
            return self.command.out.split("\n")[self._heard : -1]

        answer = until(line, f"an answer; {self.command.err}", limit_s)[0]
        self._heard += 1
        return answer if answer == "ready" else json.loads(answer)

    def ask(self, expression: str, limit_s: float = WAIT_S) -> Any:
        self.say(expression)
        return self.hear(limit_s)

    def keep(self, name: str, expression: str) -> None:
        """Let it remember under a name what the expression gives."""
        said = self.ask(f"globals().update({name}={expression})")
        assert said is None, said

    def open(self, path: Path, name: str = "fd") -> None:
        self.keep(name, f"os.open({str(path)!r}, os.O_RDONLY)")

    def is_waiting(self) -> bool:
        """Say whether it waits for an answer from a FUSE mount."""
        stack = Path(f"/proc/{self.pid}/stack").read_text()
        return "fuse" in stack or "folio_wait" in stack

    def kill(self, limit_s: float = WAIT_S) -> None:
        """SIGKILL it; fail where it does not die."""
        os.kill(self.pid, signal.SIGKILL)
        self.command.process.wait(limit_s)
        self._close()

    def end(self) -> None:
        if self.command.process.poll() is None:
            self._close()
            self.command.process.wait(WAIT_S)
        else:
            self._close()

    def _close(self) -> None:
        if self._stdin is not None:
            self._stdin.close()
