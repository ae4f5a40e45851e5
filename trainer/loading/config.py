"""Reading a config.py: a child runs it under a deadline, and what it defines comes back as data."""

import json
import os
import re
import select
import signal
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from trainer.definitions import TrainingProject
from trainer.errors import ConfigError

LOAD_TIMEOUT_S = 60.0
# An interpreter and pydantic, on a machine that is busy with other jobs.
_START_TIMEOUT_S = 60.0
_BYTES_MAX = 1 << 20
_FRAME = re.compile(r'File "(?P<file>.+)", line (?P<line>\d+) in ')


@dataclass(frozen=True)
class LoadedConfig:
    """What a config.py holds.

    path:     absolute; the workspace is relative to its directory
    warnings: what its author should look at, each with file and line
    """

    path: Path
    project: TrainingProject
    warnings: tuple[str, ...] = ()


def load_config(given: str | os.PathLike[str], *, timeout_s: float = LOAD_TIMEOUT_S) -> LoadedConfig:
    """Run the config.py that given names, in a process of its own, and return the project it defines.

    Raises ConfigError, beginning with file and line where there is one, if it can't be read, is not
    Python, raises, ends the interpreter, takes longer than timeout_s, or holds no or several projects.
    """
    path = os.path.abspath(os.fspath(given))
    _check_file(path, os.fspath(given))
    with tempfile.TemporaryFile() as result, tempfile.TemporaryFile() as dump:
        code = _run(path, result, dump, timeout_s)
        result.seek(0)
        content = result.read()
        if not content:
            dump.seek(0)
            raise ConfigError(_without_answer(path, code, dump.read().decode(errors="replace"), timeout_s))
    answer: dict[str, Any] = json.loads(content)
    if "error" in answer:
        raise ConfigError(answer["error"])
    project = TrainingProject.model_validate_json(json.dumps(answer["project"]))
    return LoadedConfig(Path(path), project, tuple(answer["warnings"]))


def _check_file(path: str, given: str) -> None:
    try:
        # A FIFO must not make us wait for whoever might write to it.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a path"
        raise ConfigError(f"can't read the config {given!r}: {reason}; name a config.py") from None
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    if stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"can't read the config {given!r}: it is a directory; name the config.py in it")
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"can't read the config {given!r}: it is not a regular file; name a config.py")
    if path.endswith((".yaml", ".yml", ".json")):
        raise ConfigError(
            f"{given}: is not a config.py; the trainer runs what a config.py defines (`bdnfs` takes a spec.yaml)"
        )
    if status.st_size > _BYTES_MAX:
        raise ConfigError(f"can't read the config {given!r}: it is over 1 MiB; is it the right file?")


def _run(path: str, result: BinaryIO, dump: BinaryIO, timeout_s: float) -> int | None:
    """Run the child; return its exit code, or None where it had to be killed."""
    command = [sys.executable, "-P", "-m", "trainer.loading.child", path]
    command += [str(result.fileno()), str(dump.fileno()), str(timeout_s)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2,  # what a config prints is for people; our own standard output may be JSON
        pass_fds=(result.fileno(), dump.fileno()),
        start_new_session=True,
    )
    ended = os.pidfd_open(process.pid)
    try:
        in_time = bool(select.select([ended], [], [], _START_TIMEOUT_S + timeout_s)[0])
    finally:
        # With what the config has started: until it is waited for, its process group is its own.
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        os.close(ended)
    return code if in_time else None


def _without_answer(path: str, code: int | None, dump: str, timeout_s: float) -> str:
    name = os.path.basename(path)
    if code is None or dump:
        lines = [int(found["line"]) for found in _FRAME.finditer(dump) if found["file"] == path]
        place = f"{name}:{lines[0]}" if lines else name
        return (
            f"{place}: was still running after {timeout_s:g} s and was ended; a config only defines its "
            "TrainingProject: what takes time belongs into start_commands"
        )
    if code < 0:
        return f"{name}: loading it was ended by signal {-code} ({signal.strsignal(-code)})"
    return (
        f"{name}: ended the interpreter with exit code {code} while it was loaded; a config only defines its "
        "TrainingProject"
    )
