"""The files of one job, below `jobs/<id>` of the trainer's home."""

import json
import os
from pathlib import Path
from typing import Any


class JobDirectory:
    """Where everything of one job lies. Its locks say who is alive; its files, what they have done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.supervisor_lock = path / "supervisor.lock"
        self.supervisor_log = path / "supervisor.log"
        self.run_lock = path / "run.lock"
        self.run = path / "run.json"
        self.exit = path / "exit.json"
        self.room = path / "room"
        self.plan = path / "plan.json"
        self.spec = path / "spec.json"
        self.spec_lock = path / "spec.lock"
        self.log = path / "logs" / "job.log"
        self.archive = path / "workspace.tar"
        self.packed = path / "packed.json"
        self.workspace = path / "workspace"
        self.hub = path / "hub"
        self.checkpoints = path / "checkpoints"

    def make(self) -> None:
        """Make the directory, this user's alone."""
        self.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.chmod(0o700)


def keep_room(path: Path, size_bytes: int) -> None:
    """Write a file whose only use is to be deleted before something is written that a full disk must not stop."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, bytes(size_bytes))
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Path, content: object) -> None:
    """Write a file that is there whole or not at all, also after a power cut."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.rename(draft, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_json(path: Path) -> Any:
    """Return what write_json wrote, or None where there is nothing, or nothing readable."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
