"""Where a benchmark works: a Hub with the model, an empty cache, a mountpoint, all in one directory."""

import fcntl
import json
import os
import re
import select
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import ROOT, BenchmarkError, timed

REPOSITORY = "local/Qwen3-0.6B-random"
WEIGHTS = "model.safetensors"
_BESIDE = Path(sys.executable).with_name("bdnfs")
BDNFS = [str(_BESIDE)] if _BESIDE.exists() else [sys.executable, "-m", "bdnfs"]
_SERVER_START_S = 180.0
_SERVER_END_S = 20.0
_AIR_BYTES = 200 * 10**6


@dataclass(frozen=True)
class Workplace:
    """One model, served, and the places around it.

    model: the repository's files as the Hub has them; native: a plain copy of them on the same disk
    locked: a spec with its spec.lock; branch: the same spec without
    """

    home: Path
    model: Path
    url: str
    environment: dict[str, str]

    @property
    def native(self) -> Path:
        return self.home / "native"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    @property
    def mountpoint(self) -> Path:
        return self.home / "mounted"

    @property
    def locked(self) -> Path:
        return self.home / "locked" / "spec.yaml"

    @property
    def branch(self) -> Path:
        return self.home / "branch" / "spec.yaml"

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.model.iterdir())

    def upstream_bytes(self) -> int:
        """Return how many bytes of file content the Hub has sent so far."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/_stats", timeout=10) as answer:
            return int(json.load(answer)["bytes_sent"])

    def commit(self) -> str:
        """Return the commit that spec.lock names."""
        found = re.search("[0-9a-f]{40}", self.locked.with_name("spec.lock").read_text())
        if found is None:
            raise BenchmarkError(f"{self.locked.with_name('spec.lock')} names no commit")
        return found[0]

    def source_at(self, revision: str) -> str:
        return f"hf://{REPOSITORY}@{revision}"

    def bdnfs(self, *words: str | Path) -> list[str]:
        return [*BDNFS, *map(str, words)]

    def copy_native(self) -> None:
        """Copy the model's bytes (never links or shared extents) to a plain directory."""
        self.native.mkdir()
        for path in self.model.iterdir():
            with path.open("rb") as source, (self.native / path.name).open("wb") as target:
                while piece := source.read(8 << 20):
                    target.write(piece)
                target.flush()
                os.fsync(target.fileno())

    def empty_cache(self) -> None:
        """Remove the node cache; its trees are read-only, and nothing of it may be mounted."""
        remove_tree(self.cache)
        # What the disk still owes to an earlier step is not this one's.
        os.sync()


@contextmanager
def open_workplace(directory: Path, *, small: bool) -> Iterator[Workplace]:
    """Write the model below directory if it is not there, serve it, and leave only it behind.

    Raises BenchmarkError where another benchmark is at it, or the disk has no room.
    """
    top = (directory / ("small" if small else "full")).resolve()
    home, model = top / "benchmark", top / "hub" / REPOSITORY
    top.mkdir(parents=True, exist_ok=True)
    environment = _environment(home)
    with (top / "benchmark.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchmarkError(f"another benchmark works in {top}; name another --directory") from None
        _clear(home, environment)
        if not model.exists():
            _require_space(top, 10**7 if small else 12 * 10**8)
            flag = ["--small"] if small else []
            timed([sys.executable, "-m", "benchmarks.models", "write", str(model), *flag], environment)
        _require_space(top, 2 * sum(path.stat().st_size for path in model.iterdir()))
        home.mkdir()
        try:
            with serving("hub", [str(top / "hub")], environment) as url:
                environment["HF_ENDPOINT"] = url
                workplace = Workplace(home, model, url, environment)
                _write_specs(workplace)
                yield workplace
        finally:
            _clear(home, environment)


def _write_specs(workplace: Workplace) -> None:
    spec = {"weights": [{"source": workplace.source_at("main"), "mount_location": str(workplace.mountpoint)}]}
    for path in (workplace.locked, workplace.branch):
        path.parent.mkdir()
        path.write_text(json.dumps(spec))  # JSON is YAML
    timed(workplace.bdnfs("lock", workplace.locked), workplace.environment)


def _require_space(place: Path, need_bytes: int) -> None:
    free = shutil.disk_usage(place).free
    if free < need_bytes + _AIR_BYTES:
        raise BenchmarkError(
            f"{place} has {free / 1e9:.1f} GB free and {(need_bytes + _AIR_BYTES) / 1e9:.1f} GB are needed; "
            "free some, name another --directory, or use --small"
        )


@contextmanager
def serving(
    name: str, words: list[str], environment: dict[str, str], prefix: Sequence[str] = ()
) -> Iterator[str]:
    """Run a server of benchmarks.servers until the block ends; yield its URL, the first line it prints.

    prefix: the words of what is to run it elsewhere
    """
    # Its input is its life line: it ends with this process, however that ends.
    server = subprocess.Popen(
        [*prefix, sys.executable, "-m", f"benchmarks.servers.{name}", *words, "--until-eof"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            ready, _, _ = select.select([server.stdout], [], [], _SERVER_START_S)
            url = server.stdout.readline().strip() if ready else ""
            if not url:
                raise BenchmarkError(f"the {name} server on loopback did not start; what it said is above")
            yield url
        finally:
            server.stdin.close()
            try:
                server.wait(_SERVER_END_S)
            except subprocess.TimeoutExpired:
                server.kill()


def remove_tree(directory: Path, *, ignore_errors: bool = False) -> None:
    """Remove a directory, if it is there; those in it may be read-only, as a cache's trees are."""
    for each, _, _ in os.walk(directory):
        os.chmod(each, 0o700)
    if directory.exists():
        shutil.rmtree(directory, ignore_errors=ignore_errors)


def _clear(home: Path, environment: dict[str, str]) -> None:
    """Leave nothing mounted at or below home, and nothing in it."""
    for command in ([*BDNFS, "unmount", "--force"], ["umount", "-l"], ["fusermount3", "-u", "-z"]):
        for mounted in reversed(_mounts(home)):
            subprocess.run(
                [*command, mounted], env=environment, cwd=ROOT, check=False, capture_output=True, timeout=60
            )
    if left := _mounts(home):
        raise BenchmarkError(f"{', '.join(left)}: can't be unmounted; end what uses it")
    remove_tree(home)


def _mounts(directory: Path) -> list[str]:
    """Return what is mounted at or below directory, in the order it was mounted."""
    # Asking the paths themselves could wait for a daemon that is gone.
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    escaped = (line.split(" ")[4] for line in lines)
    mounted = (re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), each) for each in escaped)
    return [each for each in mounted if Path(each).is_relative_to(directory)]


def _environment(home: Path) -> dict[str, str]:
    """Return the environment for every process: this user's, without their Hub login.

    Bytecode is kept between processes, as it is for any installed package.
    """
    dropped = ("HF_", "BDNFS_", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    for name in ("no_proxy", "NO_PROXY"):
        environment[name] = ",".join(filter(None, (environment.get(name), "127.0.0.1")))
    return environment | {
        "BDNFS_CACHE_DIR": str(home / "cache"),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
