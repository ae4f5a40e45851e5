"""fio's own verification: what fio wrote into the upstream, fio reads back over the mount."""

import subprocess
from pathlib import Path

from bdnfs.core.ranges import CHUNK_BYTES
from tests.commands.node import Node
from tests.readers.conftest import Held
from tests.readers.contents import HELD, content

# By file: its size, and how fio fills it. Each block carries its offset and a digest of itself.
WRITTEN = {
    "big.safetensors": (2 * CHUNK_BYTES + (64 << 10), "bs=64k verify=crc32c"),
    "odd.bin": (800 * 1019, "bs=1019 verify=sha256"),
}
ENGINES = ("psync", "pvsync2", "mmap", "libaio", "io_uring")


def write(place: Path) -> dict[str, bytes]:
    """Let fio write the files; return them."""
    for name, (size, how) in WRITTEN.items():
        options = [f"--{option}" for option in (*how.split(), "rw=write", "do_verify=0", "ioengine=psync")]
        subprocess.run(
            ["fio", "--name=write", f"--filename={place / name}", f"--size={size}", *options],
            cwd=place,
            check=True,
            capture_output=True,
            timeout=60,
        )
    return {name: (place / name).read_bytes() for name in WRITTEN}


def jobs(top: Path) -> str:
    """Return fio's jobs: every engine in order and at random on every file, past the page cache too."""
    lines = ["[global]", "allow_file_create=0", "verify_fatal=1", "iodepth=8", "thread=1"]
    for name, (size, how) in WRITTEN.items():
        ways = [(engine, rw, 0) for engine in ENGINES for rw in ("read", "randread")]
        # Direct reads want whole sectors.
        ways += [(engine, "randread", 1) for engine in ("psync", "libaio", "io_uring") if size % 4096 == 0]
        for engine, rw, direct in ways:
            lines += [
                f"[{name}-{engine}-{rw}-{direct}]",
                f"filename={top / name}",
                f"size={size}",
                *how.split(),
            ]
            lines += [f"ioengine={engine}", f"rw={rw}", f"direct={direct}"]
    return "\n".join(lines) + "\n"


def verify(node: Node, code: int = 0) -> str:
    """Let fio read everything back; return what it says."""
    job = node.place / "jobs.fio"
    job.write_text(jobs(node.m))
    done = node.start_program("fio", "--readonly", job).wait(None)
    assert (done.code == 0) == (code == 0), done.out + done.err
    return done.out + done.err


def test_fio_verifies_what_fio_wrote_in_either_view(held: Held, tmp_path: Path) -> None:
    held.mount({**write(tmp_path), HELD: content(HELD)}, pace_bytes_per_s=20e6)
    assert "verify failed" not in verify(held.node)
    assert held.node.shown() == "fuse"
    held.let_go()
    assert "verify failed" not in verify(held.node)
    held.unmount()


def test_fio_finds_one_flipped_bit(held: Held, tmp_path: Path) -> None:
    """What fio is told to do does find something: upstream holds a bit that fio did not write."""
    files = write(tmp_path)
    flipped = bytearray(files["big.safetensors"])
    flipped[CHUNK_BYTES + 4321] ^= 1
    held.mount({**files, "big.safetensors": bytes(flipped), HELD: content(HELD)})
    assert "verify failed" in verify(held.node, code=1)
    held.let_go()
    held.unmount()
