"""A node as its user has it: the real `bdnfs` in a process of its own, a cache, a place to mount at.

pytest itself never touches what may be FUSE: whoever waits for a stopped daemon can't be killed.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bdnfs.cache.node import open_node_cache
from bdnfs.fs.mounts import Mount, mount_table, namespaces, top_mount
from bdnfs.spec.config import CacheConfig
from tests.commands.forker import Forked, Forker

ROOT = Path(__file__).parents[2]
BDNFS = str(Path(sys.executable).with_name("bdnfs"))
WAIT_S = 60.0
# Planted in every node; must never come out anywhere. Another run on this machine has another one.
TOKEN = f"hf_PLANTED{secrets.token_hex(12)}xTHATxNOBODYxMAYxSEE"


def until(condition: Callable[[], object], what: str, limit_s: float = WAIT_S) -> Any:
    """Wait for a condition that another process brings about; return what it was; fail after limit_s."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {limit_s:g} s for {what}"
        time.sleep(0.01)
    return found


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that says what went wrong."""
        lines = [line for line in self.err.splitlines() if line and not line.startswith("bdnfs: warning")]
        return lines[-1] if lines else ""


class Command:
    """A command under way. Its output goes to files: nobody has to read for it to go on."""

    process: "subprocess.Popen[bytes] | Forked"

    def __init__(self, words: Sequence[str], place: Path) -> None:
        self.words = words
        self.place = place
        self._out, self._err = place / "out", place / "err"
        place.mkdir()
        self._out.touch()
        self._err.touch()

    def execute(self, environment: dict[str, str], **how: Any) -> None:
        """Start it as a program."""
        with self._out.open("wb") as out, self._err.open("wb") as err:
            how = {"cwd": self.place, "stdin": subprocess.DEVNULL, "stdout": out, "stderr": err, **how}
            self.process = subprocess.Popen(self.words, env=environment, start_new_session=True, **how)

    def fork(self, forker: Forker, environment: dict[str, str]) -> None:
        """Start it, its first word being `bdnfs`, by a fork."""
        paths = {"cwd": str(self.place), "out": str(self._out), "err": str(self._err)}
        self.process = forker.start(words=self.words[1:], environment=environment, **paths)

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # the forker has waited for it already
            self.process.send_signal(number)

    def wait(self, code: int | None = 0, limit_s: float = WAIT_S) -> Done:
        """Return how it ended; fail where it was another code, or where a traceback or a secret shows."""
        try:
            found = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.words}: still runs after {limit_s:g} s\n{self.err}") from None
        done = Done(found, self.out, self.err)
        said = f"{' '.join(self.words)} ended with {found}\n{done.out}\n{done.err}"
        assert code is None or found == code, said
        assert "Traceback" not in done.err + done.out, said
        assert TOKEN not in done.err + done.out, said
        return done


class Node:
    """One node: `run` and `start` call `bdnfs` on it."""

    def __init__(self, place: Path, url: str, forker: Forker, user: int = 0) -> None:
        self.place, self.url, self.user = place, url, user
        self._forker = forker
        self.cache, self.home, self.m = place / "cache", place / "home", place / "m"
        self.program = [BDNFS]
        self.environment = {
            "PATH": f"{Path(BDNFS).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.home),
            "HF_ENDPOINT": url,
            "BDNFS_CACHE_DIR": str(self.cache),
            "BDNFS_CONFIG": str(self.home / "config.yaml"),
            "TMPDIR": str(place / "tmp"),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
        }
        self._commands: list[Command] = []
        for directory in (self.home, place / "tmp", place / "commands"):
            directory.mkdir()
            os.chown(directory, user, user)
        self.configure()

    def configure(self, *, cache: dict[str, Any] | None = None, **sections: Any) -> None:
        """Write the config. A test doesn't wait as long for upstream as a node does."""
        upstream = {"attempts": 3, "stall": "2s", **sections.pop("upstream", {})}
        # JSON is YAML.
        content = {"upstream": upstream, "cache": {"reserve": 0, **(cache or {})}, **sections}
        (self.home / "config.yaml").write_text(json.dumps(content))

    def spec(self, *weights: dict[str, Any], name: str = "spec.yaml") -> str:
        """Write a spec; return its path."""
        path = self.place / name
        path.write_text(json.dumps({"weights": list(weights)}))
        return str(path)

    # ---- commands ------------------------------------------------------------------------------

    def start(self, *words: object, **environment: str) -> Command:
        """Start `bdnfs` with these words and, for this once, these variables."""
        if self.user:
            return self.start_program(*self.program, *words, **environment)
        command = self._command("bdnfs", *words)
        command.fork(self._forker, self.environment | environment)
        return command

    def start_program(self, *words: object, how: dict[str, Any] | None = None, **environment: str) -> Command:
        """Start a program as the node's user; how: more of what subprocess.Popen takes."""
        user = {"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}
        command = self._command(*words)
        command.execute(self.environment | environment, **{**user, **(how or {})})
        return command

    def _command(self, *words: object) -> Command:
        place = self.place / "commands" / str(len(self._commands))
        self._commands.append(Command([str(word) for word in words], place))
        return self._commands[-1]

    def run(self, *words: object, code: int = 0, **environment: str) -> Done:
        """Run `bdnfs` with these words; fail where its exit code is another one."""
        return self.start(*words, **environment).wait(code)

    def exec(self, *words: object, code: int = 0, **environment: str) -> Done:
        """Run the installed program `bdnfs`, from its interpreter's start to its end."""
        return self.start_program(*self.program, *words, **environment).wait(code)

    def refused(self, code: int, *words: object, says: Sequence[str] = (), **environment: str) -> str:
        """Run what must fail with code; return its one line, which holds all of `says`."""
        done = self.run(*words, code=code, **environment)
        for text in says:
            assert text in done.error, f"{text!r} is not in {done.error!r}"
        return done.error

    def python(self, code: str, *words: object, **how: Any) -> Command:
        """Start Python code that uses bdnfs."""
        return self.start_program(sys.executable, "-c", code, *words, how={"cwd": ROOT, **how})

    # ---- what is there -------------------------------------------------------------------------

    def mounts(self) -> list[Mount]:
        """Every mount below the node's place, FUSE sessions of daemons included."""
        return [mount for mount in mount_table() if mount.mountpoint.startswith(f"{self.place}/")]

    def shown(self, location: Path | None = None) -> str:
        """How location is mounted: "", "fuse" or "native"."""
        mount = top_mount(str(location or self.m))
        return "" if mount is None else "fuse" if mount.fstype == "fuse.bdnfs" else "native"

    def daemons(self) -> list[int]:
        """The pids of the node's daemons."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if b"bdnfs.session.daemon" in words and os.fsencode(f"{self.cache}/") in b"\0".join(words):
                    found.append(int(entry.name))
        return found

    def read(self, path: Path) -> bytes:
        """Read a file in a process of its own, which can be killed."""
        done = subprocess.run(["cat", path], capture_output=True, timeout=WAIT_S)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def holds(self, files: dict[str, bytes], location: Path | None = None) -> None:
        """Check that exactly files are at location."""
        top = location or self.m
        listed = subprocess.run(
            ["find", "-L", top, "-type", "f", "-printf", "%P\n"],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )
        assert sorted(listed.stdout.splitlines()) == sorted(files), listed.stderr
        for path, content in files.items():
            assert self.read(top / path) == content, path

    def status(self) -> dict[str, Any]:
        """The one mount that `status` knows."""
        (mount,) = self.run("status", "--json").json["mounts"]
        return dict(mount)

    def left_behind(self) -> list[str]:
        """Name what stands or runs although nothing is mounted any more."""
        records = self.cache / "mounts"
        return [
            *(f"mount at {mount.mountpoint}" for mount in self.mounts()),
            *(f"daemon {pid}" for pid in self.daemons()),
            *(f"record {path}" for path in (records.iterdir() if records.exists() else ()) if path.is_dir()),
            *([f"directory {self.m}"] if os.path.lexists(self.m) else []),
        ]

    def clean(self) -> None:
        """Check that nothing is left behind; a daemon that was just told to end may take a moment.

        A mount namespace that somebody else made meanwhile (another test's `run`) has a copy of our
        mounts: until it ends the directory stays, and a later command removes it.
        """
        deadline = time.monotonic() + 20
        while left := self.left_behind():
            assert time.monotonic() < deadline, left
            if left == [f"directory {self.m}"]:
                self.run("status")
            time.sleep(0.02)

    # ---- the end -------------------------------------------------------------------------------

    def end(self) -> None:
        """End every process of the node and take away its mounts, whatever the test left."""
        for command in self._commands:
            if command.process.poll() is None:
                command.process.kill()
            command.process.wait(WAIT_S)
        for pid in self.daemons():
            os.kill(pid, signal.SIGKILL)
        while mounts := self.mounts():
            subprocess.run(["umount", "-l", mounts[-1].mountpoint], check=True, timeout=WAIT_S)
        until(lambda: not self.daemons(), "the daemons to end")

    def check_cache(self) -> None:
        """Rehash everything in the cache: whatever happened, what it says it has is right."""
        if self.user == 0 and (self.cache / "index.lmdb").exists():
            config = CacheConfig(str(self.cache), reserve_bytes=0)
            with open_node_cache(config, namespaces) as cache:
                blobs = cache.blobs()
                for blob, _ in blobs:
                    problem = cache.verify_blob(blob)
                    assert problem is None, f"{blob.hex()}: {problem}"
                assert cache.usage().present_bytes == sum(row.present for _, row in blobs)
                known = {blob.hex() for blob, _ in blobs}
            found = {path.name for path in (self.cache / "blobs").glob("*/*")}
            assert found <= known, f"files without a row: {found - known}"

    def no_secret_in_files(self) -> None:
        """Look for the planted token in every file of the node's place but the given ones."""
        found = subprocess.run(
            ["grep", "-rlaF", "--", TOKEN, self.cache, self.place / "commands", self.place / "tmp"],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )
        assert found.stdout == "", f"the token is in {found.stdout}"

    def remove(self) -> None:
        for directory, _, _ in os.walk(self.place):
            os.chmod(directory, 0o700)
        shutil.rmtree(self.place)
