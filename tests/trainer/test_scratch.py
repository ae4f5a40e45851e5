"""Scratch: the cap is the job's alone, and nothing stays of it however the job ends."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdnfs.fs.mounts import mount_table
from tests.commands.node import until
from tests.storage.disks import Disks, fill_up
from tests.trainer.confined import ROOT, WAIT_S, confined, needs_root, words
from trainer.errors import ConfigError
from trainer.storage.errors import SpaceError
from trainer.storage.loop import is_backed_by
from trainer.storage.scratch import clear_scratch, make_scratch

MIB = 1 << 20
CAP = 24 * MIB
MOUNT = """
import os, sys
from pathlib import Path
from trainer.storage.scratch import Scratch
kind, cap, job_dir, at = sys.argv[1:5]
place = Scratch(kind=kind, cap_bytes=int(cap), job_dir=Path(job_dir)).mount(Path(at))
def fill(name):
    written = 0
    try:
        with open(place / name, "wb", buffering=0) as file:
            while True:
                written += file.write(bytes(1 << 20))
    except OSError as error:
        return written, error.strerror
"""
OVERRUN = MOUNT + "print(*fill('big'), sep=':'); print(fill('more')[1])"
HOLD = MOUNT + "(place / 'file').write_text('x'); print('there', flush=True); sys.stdin.read()"


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    made = Disks(tmp_path)
    yield made
    made.close()


def job(tmp_path: Path, name: str = "job") -> tuple[Path, Path]:
    """Return a job's directory, and one to mount on."""
    job_dir, at = tmp_path / name, tmp_path / f"{name}-at"
    job_dir.mkdir()
    at.mkdir()
    return job_dir, at


def left_of(job_dir: Path) -> list[str]:
    backing = [
        path.read_text().strip()
        for path in Path("/sys/block").glob("loop*/loop/backing_file")
        if path.exists()
    ]
    return [each for each in backing if each.startswith(f"{job_dir}/")] + [
        mount.mountpoint for mount in mount_table() if mount.mountpoint.startswith(f"{job_dir.parent}/")
    ]


@needs_root
def test_who_overruns_gets_enospc_and_nobody_else_does(tmp_path: Path) -> None:
    (greedy, greedy_at), (other, other_at) = job(tmp_path, "greedy"), job(tmp_path, "other")
    scratches = [make_scratch(each, CAP) for each in (greedy, other)]
    assert [(each.kind, each.said) for each in scratches] == [("image", "")] * 2
    said = confined(OVERRUN, "image", CAP, greedy, greedy_at).splitlines()
    written, error = said[0].split(":")
    assert CAP * 0.8 < int(written) <= CAP
    assert error == said[1] == os.strerror(28)
    # The neighbour has all of its own still, and so has the disk below.
    written, _ = confined(OVERRUN, "image", CAP, other, other_at).splitlines()[0].split(":")
    assert int(written) > CAP * 0.8
    for each in (greedy, other):
        clear_scratch(each)
        assert not list(each.iterdir())
    assert not list(greedy_at.iterdir())


@needs_root
def test_blocks_are_reserved_so_a_full_disk_below_is_never_met(tmp_path: Path, disks: Disks) -> None:
    disk = disks.mount(disks.image("ext4", 64), "ext4")
    job_dir, at = job(disk.at)
    make_scratch(job_dir, CAP)
    fill_up(disk.at)
    written, error = confined(OVERRUN, "image", CAP, job_dir, at).splitlines()[0].split(":")
    assert int(written) > CAP * 0.8
    assert error == os.strerror(28)
    clear_scratch(job_dir)


@needs_root
def test_a_disk_without_room_says_so_before_the_job_starts(tmp_path: Path, disks: Disks) -> None:
    disk = disks.mount(disks.image("ext4", 32), "ext4")
    job_dir, _ = job(disk.at)
    with pytest.raises(
        SpaceError, match=r"reserving a scratch of 67,108,864 bytes .* bytes are free; free some"
    ):
        make_scratch(job_dir, 64 * MIB)
    assert not list(job_dir.iterdir())


@needs_root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_is_gone_with_the_jobs_last_process_however_that_ends(tmp_path: Path, number: int) -> None:
    job_dir, at = job(tmp_path)
    make_scratch(job_dir, CAP)
    with subprocess.Popen(
        words(HOLD, "image", CAP, job_dir, at), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        assert [each for each in left_of(job_dir) if each.endswith("scratch.img")]
        assert not list(at.iterdir()), "it shows in the namespace it was mounted in alone"
        process.send_signal(number)
        process.wait(WAIT_S)
    clear_scratch(job_dir, wait_s=WAIT_S)
    assert not left_of(job_dir)
    clear_scratch(job_dir)
    assert not list(job_dir.iterdir())


@needs_root
def test_a_process_that_outlives_its_job_keeps_the_blocks_and_nobody_waiting(tmp_path: Path) -> None:
    job_dir, at = job(tmp_path)
    make_scratch(job_dir, CAP)
    with subprocess.Popen(
        words(HOLD, "image", CAP, job_dir, at), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        clear_scratch(job_dir, wait_s=0.05)
        assert not list(job_dir.iterdir())
        assert is_backed_by(job_dir / "scratch.img")
        process.communicate(timeout=WAIT_S)
        assert process.returncode == 0
    until(lambda: not is_backed_by(job_dir / "scratch.img"), "the kernel to let go of the image")


@needs_root
def test_what_a_crash_left_is_replaced(tmp_path: Path) -> None:
    job_dir, at = job(tmp_path)
    made = make_scratch(job_dir, CAP)
    (job_dir / "scratch").mkdir()
    confined(
        "import subprocess, sys; subprocess.run(['true'], check=True)\n" + HOLD, "image", CAP, job_dir, at
    )
    assert make_scratch(job_dir, CAP) == made
    assert confined(
        MOUNT + "print(os.listdir(place), oct(place.stat().st_mode))", "image", CAP, job_dir, at
    ) == ("[] 0o41777\n")
    clear_scratch(job_dir)


@needs_root
def test_clearing_unmounts_what_stands_in_the_callers_namespace(tmp_path: Path) -> None:
    code = (
        MOUNT
        + "from trainer.storage.scratch import clear_scratch; clear_scratch(Path(job_dir)); print(os.listdir(job_dir))"
    )
    job_dir, _ = job(tmp_path)
    make_scratch(job_dir, CAP)
    (job_dir / "scratch").mkdir()
    assert confined(code, "image", CAP, job_dir, job_dir / "scratch") == "[]\n"


@needs_root
def test_without_a_loop_device_it_is_a_tmpfs_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("unshare", "mount"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(programs))
    job_dir, at = job(tmp_path)
    scratch = make_scratch(job_dir, CAP)
    assert scratch.kind == "tmpfs"
    assert "in memory" in scratch.said
    assert "mkfs.ext4 is missing" in scratch.said
    monkeypatch.undo()
    written, error = confined(OVERRUN, "tmpfs", CAP, job_dir, at).splitlines()[0].split(":")
    assert int(written) == CAP
    assert error == os.strerror(28)


MAKE = """
import sys
from pathlib import Path
from trainer.storage.scratch import make_scratch
scratch = make_scratch(Path(sys.argv[1]), int(sys.argv[2]))
print(scratch.kind, scratch.said, sep=": ")
print(scratch.mount(Path(sys.argv[3])))
"""
# Everything is loaded before the rights are given up: the interpreter may lie where uid 1000 may not read.
AS_ANYBODY = """
import ctypes, os, subprocess, sys
from pathlib import Path
from bdnfs.fs.mounts import unshare
from trainer.storage.overlay import mount_overlay
from trainer.storage.scratch import make_scratch
os.setgroups([]); os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
home = Path(sys.argv[1])
job_dir, at, source = home / "job", home / "at", home / "source"
for each in (job_dir, at, source):
    each.mkdir()
(source / "model").write_text("as it was")
source.chmod(0o555)
scratch = make_scratch(job_dir, int(sys.argv[2]))
print(scratch.kind, scratch.said, sep=": ")
unshare(user=True)
place = scratch.mount(at)
mount_overlay(source, place, "source")
(source / "more").write_text("new")
try:
    (place / "big").write_bytes(bytes(scratch.cap_bytes + 1))
except OSError as error:
    print(error.strerror)
"""


@needs_root
def test_an_ordinary_user_gets_a_tmpfs_in_a_namespace_of_theirs() -> None:
    with tempfile.TemporaryDirectory(prefix="bdnfs-trainer-", dir="/var/tmp") as home:
        os.chown(home, 1000, 1000)
        said = confined(AS_ANYBODY, home, CAP).splitlines()
        assert said[0].startswith("tmpfs: scratch is in memory")
        assert said[1] == os.strerror(28)
        assert os.listdir(f"{home}/source") == ["model"]


@needs_root
def test_where_nothing_may_be_mounted_it_is_a_directory_without_a_cap(tmp_path: Path) -> None:
    job_dir, at = job(tmp_path)
    code = f"import os; os.environ['PATH'] = '{tmp_path}'\n" + MAKE
    done = subprocess.run(
        [sys.executable, "-c", code, job_dir, str(CAP), at],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stderr
    said, place = done.stdout.splitlines()
    assert said.startswith(
        "directory: scratch is a plain directory and has no cap, as nothing can be mounted: "
    )
    assert Path(place) == job_dir / "scratch"
    (job_dir / "scratch" / "file").write_text("x")
    clear_scratch(job_dir)
    assert not list(job_dir.iterdir())


def test_a_cap_that_no_filesystem_fits_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an empty filesystem takes more"):
        make_scratch(tmp_path, MIB)
