"""Mount a model from a Hub on loopback, load it, unmount, and the same again from the cache.

Called by scripts/quickstart. Everything it makes lies in one directory; mounts and the server
are gone when it ends, however it ends.
"""

import argparse
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
BDNFS = str(Path(sys.executable).with_name("bdnfs"))
REPOSITORY = "local/Qwen3-0.6B-random"
SOURCE = f"hf://{REPOSITORY}@main"
# Model and cache, 1.19 GB each, and some air.
DISK_BYTES = 3 * 10**9
SERVER_START_S = 180.0
COMMAND_END_S = 20.0


class QuickstartError(Exception):
    """Something did not work; the message is for whoever started the quickstart."""


@dataclass(frozen=True)
class Round:
    """One round's figures: seconds, and bytes of file content that came from upstream."""

    ready_s: float
    load_s: float
    upstream_bytes: int


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/quickstart", description=__doc__)
    parser.add_argument("--small", action="store_true", help="a model of a few MB instead of 1.19 GB")
    parser.add_argument("--directory", type=Path, default=ROOT / ".quickstart", help="default: .quickstart")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        quickstart(options.directory.resolve() / ("small" if options.small else "full"), options.small)
    except KeyboardInterrupt:
        print("\nquickstart: interrupted; mounts and the server are gone", file=sys.stderr)
        return 130
    except QuickstartError as error:
        print(f"\nquickstart: {error}", file=sys.stderr)
        return 1
    return 0


def quickstart(home: Path, small: bool) -> None:
    """Do it all below home and print the table; raise QuickstartError where something fails."""
    hub, cache, mountpoint = home / "hub", home / "cache", home / "model"
    home.mkdir(parents=True, exist_ok=True)
    environment = _environment(cache, home)
    model = hub / REPOSITORY
    # An earlier quickstart that was killed may have left its mount.
    _unmount(home, mountpoint, environment)
    _remove(cache)
    if not model.exists():
        free = shutil.disk_usage(home).free
        if not small and free < DISK_BYTES:
            raise QuickstartError(
                f"{home} has {free / 1e9:.1f} GB free and {DISK_BYTES / 1e9:.0f} GB are needed; "
                "free some, name another place with --directory, or use --small"
            )
        print("A model is written once, random weights in the shape of Qwen3-0.6B:", flush=True)
        small_flag = ["--small"] if small else []
        run([sys.executable, "-m", "benchmarks.models", "write", str(model), *small_flag], environment)
    size = sum(path.stat().st_size for path in model.iterdir())
    with serving(hub, environment) as url:
        environment["HF_ENDPOINT"] = url
        print(f"\nA Hub serves it on loopback; from here on HF_ENDPOINT={url}, BDNFS_CACHE_DIR={cache}")
        rounds = []
        try:
            for title in ("miss: nothing is in the cache", "hit: everything is"):
                print(f"\n— {title}")
                rounds.append(one_round(url, mountpoint, environment))
        finally:
            _unmount(home, mountpoint, environment)
    report(size, *rounds)


def one_round(url: str, mountpoint: Path, environment: dict[str, str]) -> Round:
    """Mount, load, generate, unmount; return the figures."""
    before = _upstream_bytes(url)
    started = time.perf_counter()
    run([BDNFS, "mount", SOURCE, str(mountpoint), "--progress=plain"], environment)
    ready_s = time.perf_counter() - started
    loading = [sys.executable, "-m", "benchmarks.models", "load", str(mountpoint)]
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    said = json.loads(run(loading, offline, capture=True).splitlines()[-1])
    print(f"  it says: {said['text']!r}")
    run([BDNFS, "unmount", str(mountpoint)], environment)
    if mountpoint in _mounts(mountpoint):
        raise QuickstartError(f"{mountpoint} is still mounted after `bdnfs unmount`")
    return Round(ready_s, said["load_s"], _upstream_bytes(url) - before)


def report(size: int, miss: Round, hit: Round) -> None:
    """Print miss against hit; raise QuickstartError if a byte came twice."""
    rows = [
        ("", "miss", "hit"),
        ("mounted and whole", f"{miss.ready_s:.2f} s", f"{hit.ready_s:.2f} s"),
        ("bytes from upstream", f"{miss.upstream_bytes:,}", f"{hit.upstream_bytes:,}"),
        ("  of the model's", f"{miss.upstream_bytes / size:.2f} ×", f"{hit.upstream_bytes / size:.2f} ×"),
        ("GB/s until whole", f"{size / 1e9 / miss.ready_s:.2f}", f"{size / 1e9 / hit.ready_s:.2f}"),
        ("from_pretrained", f"{miss.load_s:.2f} s", f"{hit.load_s:.2f} s"),
    ]
    print(f"\n{f'{size / 1e9:.2f} GB' if size >= 1e9 else f'{size / 1e6:.2f} MB'}, {SOURCE}\n")
    for name, *values in rows:
        print(f"  {name:<20}" + "".join(f"{value:>16}" for value in values))
    if miss.upstream_bytes != size or hit.upstream_bytes:
        raise QuickstartError(
            f"a miss should bring {size:,} bytes from upstream and a hit none; please report this"
        )


@contextmanager
def serving(directory: Path, environment: dict[str, str]) -> Iterator[str]:
    """Serve directory as a Hub in a process of its own; yield its URL."""
    command = [sys.executable, "-m", "benchmarks.servers.hub", str(directory), "--until-eof"]
    _show(command)
    # A session of its own: Ctrl-C is for the command that runs in front, not for its upstream.
    # Should this process be killed, the server sees the end of its input.
    server = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=environment,
        text=True,
        start_new_session=True,
    )
    with server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            ready, _, _ = select.select([server.stdout], [], [], SERVER_START_S)
            url = server.stdout.readline().strip() if ready else ""
            if not url:
                raise QuickstartError("the Hub on loopback did not start; what it said is above")
            yield url
        finally:
            server.stdin.close()
            _end(server)


def run(command: list[str], environment: dict[str, str], *, capture: bool = False) -> str:
    """Show and run command; return its output if captured; raise QuickstartError if it fails."""
    _show(command)
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE if capture else None
    ) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            # Ctrl-C reached it, too, and it cleans up; of anything else it has to be told.
            if not isinstance(sys.exception(), KeyboardInterrupt):
                process.send_signal(signal.SIGINT)
            _end(process)
            raise
    if process.returncode:
        hint = "; `bdnfs doctor` says what this machine can do" if command[0] == BDNFS else ""
        raise QuickstartError(f"`{_shown(command)}` ended with exit code {process.returncode}{hint}")
    return output or ""


def _end(process: subprocess.Popen[str]) -> None:
    for stop in (process.terminate, process.kill):
        try:
            process.wait(COMMAND_END_S)
        except subprocess.TimeoutExpired:
            stop()


def _unmount(home: Path, mountpoint: Path, environment: dict[str, str]) -> None:
    """Leave nothing mounted below home: by bdnfs if it can, by hand if it can't."""
    for force in ([], ["--force"]):
        if mountpoint in _mounts(home):
            _try([BDNFS, "unmount", *force, str(mountpoint)], environment)
    for mounted in reversed(_mounts(home)):
        _try(["umount", "-l", str(mounted)], environment)
    for mounted in reversed(_mounts(home)):
        _try(["fusermount3", "-u", "-z", str(mounted)], environment)


def _try(command: list[str], environment: dict[str, str]) -> None:
    _show(command)
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(command, env=environment, cwd=ROOT, check=False, timeout=COMMAND_END_S)


def _mounts(directory: Path) -> list[Path]:
    """Return what is mounted at or below directory, in the order it was mounted."""
    # Asking the paths themselves could wait for a daemon that is gone.
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    escaped = (line.split(" ")[4] for line in lines)
    mounted = [Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), each)) for each in escaped]
    return [each for each in mounted if each.is_relative_to(directory)]


def _remove(cache: Path) -> None:
    """Remove an earlier quickstart's cache, whose trees are read-only."""
    for directory, _, _ in os.walk(cache):
        os.chmod(directory, 0o700)
    if cache.exists():
        shutil.rmtree(cache)


def _upstream_bytes(url: str) -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/_stats", timeout=10) as answer:
        stats: dict[str, Any] = json.load(answer)
    return int(stats["bytes_sent"])


def _environment(cache: Path, home: Path) -> dict[str, str]:
    """Return the environment for every command: this user's, without their Hub login."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "BDNFS_"))
    }
    for name in ("no_proxy", "NO_PROXY"):
        environment[name] = ",".join(filter(None, (environment.get(name), "127.0.0.1")))
    return environment | {
        "BDNFS_CACHE_DIR": str(cache),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def _show(command: list[str]) -> None:
    print(f"$ {_shown(command)}", flush=True)


def _shown(command: list[str]) -> str:
    names = {BDNFS: "bdnfs", sys.executable: "python"}
    return shlex.join([names.get(command[0], command[0]), *command[1:]])


def _leave(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
