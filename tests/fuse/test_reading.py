"""What a reader of the FUSE view sees: the right bytes, the right attributes, and nothing to write to."""

import json
from pathlib import Path

import pytest

from bdnfs.fs.mounts import mount_table, top_mount
from tests.fuse.conftest import View, child, command
from tests.fuse.serving import MANY, SIZES


def test_every_file_reads_whole(view: View) -> None:
    code = """
import sys
from pathlib import Path
from tests.fuse.serving import SIZES, content
for path in SIZES:
    assert (Path(sys.argv[1]) / "model" / path).read_bytes() == content(path), path
"""
    child(code, view.mountpoint)


def test_random_reads_return_the_bytes_asked_for(view: View) -> None:
    code = """
import mmap, os, random, sys
from tests.fuse.serving import SIZES, content
chosen = random.Random(7)
for path in ("model.safetensors", "later.safetensors", "a/b.bin", "empty.bin"):
    expected = content(path)
    fd = os.open(f"{sys.argv[1]}/model/{path}", os.O_RDONLY)
    for _ in range(150):
        if chosen.random() < 0.2:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        offset = chosen.randrange(len(expected) + 5000)
        length = chosen.choice((1, 100, 4096, 70_000, 1 << 20, 3 << 20))
        assert os.pread(fd, length, offset) == expected[offset : offset + length], (path, offset, length)
    os.close(fd)
"""
    child(code, view.mountpoint)


def test_direct_reads_of_many_processes_at_once(view: View) -> None:
    code = """
import os, random, sys
from concurrent.futures import ThreadPoolExecutor
from tests.fuse.serving import content
expected = content("model.safetensors")
def read(seed):
    chosen = random.Random(seed)
    fd = os.open(f"{sys.argv[1]}/model/model.safetensors", os.O_RDONLY)
    for _ in range(40):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        offset = chosen.randrange(len(expected))
        assert os.pread(fd, 600_000, offset) == expected[offset : offset + 600_000]
    os.close(fd)
with ThreadPoolExecutor(8) as threads:
    list(threads.map(read, range(8)))
"""
    child(code, view.mountpoint)


def test_mapped_file_shows_its_bytes(view: View) -> None:
    code = """
import mmap, sys
from tests.fuse.serving import content
with open(sys.argv[1] + "/model/model.safetensors", "rb") as file:
    with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == content("model.safetensors")
"""
    child(code, view.mountpoint)


def test_attributes_are_those_of_a_native_tree(view: View) -> None:
    code = """
import json, os, sys
out = {}
for path in ("model", "model/a", "model/config.json", "model/empty.bin"):
    s = os.stat(os.path.join(sys.argv[1], path))
    out[path] = [oct(s.st_mode), s.st_nlink, s.st_uid, s.st_gid, s.st_size, s.st_mtime_ns, s.st_blocks]
print(json.dumps(out))
"""
    time_ns = 315532800 * 10**9
    assert json.loads(child(code, view.mountpoint)) == {
        "model": ["0o40555", 3, 0, 0, 0, time_ns, 0],
        "model/a": ["0o40555", 3, 0, 0, 0, time_ns, 0],
        "model/config.json": ["0o100444", 1, 0, 0, 700, time_ns, 2],
        "model/empty.bin": ["0o100444", 1, 0, 0, 0, time_ns, 0],
    }


def test_listing_is_complete_and_names_agree(view: View) -> None:
    code = """
import json, os, sys
many = os.path.join(sys.argv[1], "data", "many")
names = os.listdir(many)
assert len(names) == len(set(names))
inodes = {e.name: e.inode() for e in os.scandir(many)}
assert all(os.stat(os.path.join(many, name)).st_ino == inode for name, inode in inodes.items())
print(json.dumps([sorted(names), sorted(os.listdir(os.path.join(sys.argv[1], "model")))]))
"""
    many, model = json.loads(child(code, view.mountpoint))
    assert many == [f"{number:05}.txt" for number in range(MANY)]
    assert model == sorted({path.split("/")[0] for path in SIZES})


def test_listing_goes_on_where_it_was_left(view: View) -> None:
    code = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
stream = ctypes.c_void_p(libc.opendir((sys.argv[1] + "/data/many").encode()))
def name():
    entry = libc.readdir(stream)
    return ctypes.string_at(entry + 19) if entry else None
first = [name() for _ in range(900)]
place = libc.telldir(stream)
rest = list(iter(name, None))
libc.seekdir(stream, ctypes.c_long(place))
assert list(iter(name, None)) == rest and len(first) + len(rest) == 2502, (len(first), len(rest))
"""
    child(code, view.mountpoint)


def test_absent_names_are_absent(view: View) -> None:
    code = """
import os, sys
for name in ("nothing", "model/nothing", "model/a/b.bin.lock", "model/" + "x" * 255):
    for _ in range(2):
        assert not os.path.lexists(os.path.join(sys.argv[1], name)), name
"""
    child(code, view.mountpoint)


def test_mount_is_read_only_nosuid_nodev(view: View) -> None:
    mount = top_mount(str(view.mountpoint))
    assert mount is not None
    assert mount.fstype == "fuse.bdnfs"
    assert mount.source == "test://model,data"
    assert {"ro", "nosuid", "nodev"} <= set(mount.options.split(","))


@pytest.mark.parametrize(
    "attempt",
    [
        'open(f"{top}/model/config.json", "r+b")',
        'open(f"{top}/model/new", "wb")',
        'os.unlink(f"{top}/model/config.json")',
        'os.mkdir(f"{top}/model/new")',
        'os.rename(f"{top}/model/config.json", f"{top}/model/other")',
        'os.chmod(f"{top}/model/config.json", 0o666)',
        'os.utime(f"{top}/model/config.json")',
        'os.truncate(f"{top}/model/config.json", 0)',
        'os.setxattr(f"{top}/model/config.json", "user.a", b"b")',
    ],
)
def test_nothing_can_be_written(view: View, attempt: str) -> None:
    code = f"""
import errno, os, sys
top = sys.argv[1]
try:
    {attempt}
except OSError as error:
    assert error.errno == errno.EROFS, error
else:
    raise AssertionError("went through")
"""
    child(code, view.mountpoint)


def test_what_every_tool_asks_for(view: View) -> None:
    code = """
import errno, os, sys
path = sys.argv[1] + "/model/model.safetensors"
status = os.statvfs(path)
assert status.f_bfree == status.f_bavail == 0 and status.f_blocks * status.f_frsize >= 13_000_000
assert status.f_flag & os.ST_RDONLY and status.f_namemax == 255
for ask in (lambda: os.getxattr(path, "security.capability"), lambda: os.listxattr(path)) * 2:
    try:
        assert not ask()
    except OSError as error:
        assert error.errno in (errno.ENODATA, errno.EOPNOTSUPP), error
assert os.access(path, os.R_OK) and not os.access(path, os.W_OK)
"""
    child(code, view.mountpoint)


def test_read_ahead_is_raised(view: View) -> None:
    mount = top_mount(str(view.mountpoint))
    assert mount is not None
    assert int(Path(f"/sys/class/bdi/{mount.device}/read_ahead_kb").read_text()) == 1024


def test_plain_umount_ends_the_daemon(view: View) -> None:
    command("umount", view.mountpoint)
    view.wait_ended()
    assert not [mount for mount in mount_table() if mount.mountpoint == str(view.mountpoint)]


def test_other_users_may_read(view: View) -> None:
    code = """
import os, sys
os.setgroups([]); os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)
assert len(open(sys.argv[1] + "/model/config.json", "rb").read()) == 700
"""
    child(code, view.mountpoint)
