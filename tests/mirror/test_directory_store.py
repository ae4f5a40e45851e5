"""What is a directory's alone: sidecars, crashes between the steps, planted links, full disks, other processes."""

import errno
import multiprocessing
import os
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bdnfs.core import steps
from bdnfs.core.errors import (
    CredentialsError,
    IntegrityError,
    NotFoundError,
    SpaceError,
    SpecError,
    UnavailableError,
    UpstreamError,
)
from bdnfs.core.units import MIB
from bdnfs.mirror import directory as module
from bdnfs.mirror.directory import UNTYPED, DirectoryStore
from bdnfs.mirror.opening import open_store
from bdnfs.spec.config import UpstreamConfig
from tests.storage.disks import Disks, fill_up
from tests.unit.cache.stocked import content

CHUNK, JSON = "application/vnd.baseten.bdn.chunk.v1", "application/json"
KEY = "bdn/org/name/objects/b3/ab/cd/abcdef"
STEPS = tuple(step for step in steps.STEPS if step.startswith("mirror:object-"))
WAIT_S = 60.0
children = multiprocessing.get_context("forkserver")
children.set_forkserver_preload(["tests.mirror.test_directory_store"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "mirror"


@pytest.fixture
def store(root: Path) -> Iterator[DirectoryStore]:
    found = DirectoryStore(str(root))
    yield found
    found.close()


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def staged(root: Path) -> list[str]:
    return os.listdir(root / ".bdnfs/staging")


def ended(child: multiprocessing.process.BaseProcess) -> int | None:
    child.join(WAIT_S)
    code = child.exitcode
    if code is None:
        child.kill()
    child.close()
    return code


# ---- layout --------------------------------------------------------------------------------------


def test_objects_lie_at_their_keys_and_their_types_beside_them(root: Path) -> None:
    store = DirectoryStore(str(root))
    store.put(KEY, b"data", CHUNK, "absent")
    store.put("bdn/tag", b"{}", JSON, "any")
    store.flush()
    store.close()
    assert files(root) == {
        KEY: b"data",
        "bdn/tag": b"{}",
        f".bdnfs/types/{KEY}": CHUNK.encode(),
        ".bdnfs/types/bdn/tag": JSON.encode(),
        ".bdnfs/lock": b"",
    }
    assert stat.S_IMODE((root / KEY).stat().st_mode) == 0o444


def test_who_may_read_is_up_to_the_umask(root: Path) -> None:
    before = os.umask(0o027)
    try:
        store = DirectoryStore(str(root))
        store.put(KEY, b"data", CHUNK, "absent")
        store.close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((root / KEY).stat().st_mode) == 0o440
    assert stat.S_IMODE((root / KEY).parent.stat().st_mode) == 0o750
    assert stat.S_IMODE((root / f".bdnfs/types/{KEY}").stat().st_mode) == 0o440


def test_deleting_takes_the_sidecars_and_what_is_empty_then(root: Path, store: DirectoryStore) -> None:
    store.put(KEY, b"data", CHUNK, "absent")
    store.put("bdn/org/other", b"data", CHUNK, "absent")
    store.delete([KEY, "bdn/org/gone/key"])
    assert not (root / "bdn/org/name").exists()
    assert not (root / ".bdnfs/types/bdn/org/name").exists()
    store.delete(["bdn/org/other"])
    assert sorted(os.listdir(root)) == [".bdnfs"]
    assert not files(root / ".bdnfs/types")


def test_an_object_whose_sidecar_is_gone_has_no_type_until_it_is_put_over(
    root: Path, store: DirectoryStore
) -> None:
    store.put(KEY, b"data", CHUNK, "absent")
    (root / f".bdnfs/types/{KEY}").unlink()
    assert store.get(KEY, 4).content_type == UNTYPED
    assert not store.put(KEY, b"data", CHUNK, "absent")
    assert store.put(KEY, b"data", CHUNK, "any")
    assert store.get(KEY, 4).content_type == CHUNK


@pytest.mark.parametrize("junk", [b"", b"\xff\xfe", b"no type", b"x/y\0z", bytes(100_000)])
def test_a_sidecar_with_anything_in_it(root: Path, store: DirectoryStore, junk: bytes) -> None:
    store.put(KEY, b"data", CHUNK, "absent")
    sidecar = root / f".bdnfs/types/{KEY}"
    sidecar.unlink()
    sidecar.write_bytes(junk)
    assert store.get(KEY, 4).content_type == UNTYPED


def test_strangers_in_the_directory_are_not_listed(root: Path, store: DirectoryStore) -> None:
    store.put(KEY, b"data", CHUNK, "absent")
    (root / "lost+found").mkdir()
    (root / "bdn/.nfs00001").write_bytes(b"x")
    (root / "bdn/link").symlink_to("/etc/passwd")
    (root / "bdn/loop").symlink_to(root)
    os.mkfifo(root / "bdn/pipe")
    assert [each.key for each in store.list("")] == [KEY]


# ---- what is planted -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["bdn", "bdn/org/name/objects", KEY, ".bdnfs", ".bdnfs/types", ".bdnfs/staging"]
)
def test_a_planted_symlink_is_not_followed(root: Path, tmp_path: Path, place: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"theirs")
    (root / place).parent.mkdir(parents=True)
    (root / place).symlink_to(elsewhere / "file" if place == KEY else elsewhere)
    store = DirectoryStore(str(root))
    with pytest.raises(UpstreamError, match="not followed"):
        store.put(KEY, b"mine", CHUNK, "absent")
    if not place.startswith("."):
        with pytest.raises(UpstreamError, match="not followed"):
            store.get(KEY, 100)
        with pytest.raises(UpstreamError, match="not followed"):
            store.delete([KEY])
        assert not list(store.list(""))
    store.close()
    assert files(elsewhere) == {"file": b"theirs"}


def test_what_is_put_over_a_planted_symlink_takes_its_place(root: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"theirs")
    (root / "bdn").mkdir(parents=True)
    (root / "bdn/tag").symlink_to(theirs)
    store = DirectoryStore(str(root))
    assert store.put("bdn/tag", b"mine", JSON, "any")
    store.close()
    assert not (root / "bdn/tag").is_symlink()
    assert theirs.read_bytes() == b"theirs"


def test_a_pipe_in_an_objects_place_holds_nobody(root: Path, store: DirectoryStore) -> None:
    (root / "bdn").mkdir(parents=True)
    os.mkfifo(root / "bdn/pipe")
    for call in (lambda: store.get("bdn/pipe", 1), lambda: store.fill("bdn/pipe", memoryview(bytearray(1)))):
        with pytest.raises(IntegrityError, match="regular"):
            call()


# ---- crashes and other processes -----------------------------------------------------------------


def put_and_die(root: str, step: str, data: bytes, content_type: str, expected: str) -> None:
    def note(reached: str) -> None:
        if reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    steps.on_step(note)
    DirectoryStore(root).put(KEY, data, content_type, expected)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("over", [False, True])
def test_killed_at_each_step_an_object_is_the_old_or_the_new_one(root: Path, step: str, over: bool) -> None:
    store = DirectoryStore(str(root))
    old, new = content("old", MIB), content("new", MIB + 1)
    if over:
        store.put(KEY, old, CHUNK, "absent")
    child = children.Process(
        target=put_and_die, args=(str(root), step, new, CHUNK, "any" if over else "absent")
    )
    child.start()
    assert ended(child) == -signal.SIGKILL

    size = store.size(KEY)
    if step == STEPS[-1]:
        assert store.get(KEY, 2 * MIB)[:2] == (new, CHUNK)
    elif over:
        assert store.get(KEY, 2 * MIB)[:2] == (old, CHUNK)
    else:
        assert size is None
        assert not list(store.list(""))
    assert store.put(KEY, new, CHUNK, "absent") is (size is None)
    assert store.put(KEY, new, CHUNK, "any")
    assert store.get(KEY, 2 * MIB)[:2] == (new, CHUNK)
    store.close()


def test_every_step_is_killed_at(root: Path, store: DirectoryStore) -> None:
    reached: list[str] = []
    steps.on_step(reached.append)
    try:
        store.put(KEY, b"data", CHUNK, "absent")
    finally:
        steps.on_step(None)
    assert tuple(reached) == STEPS


def test_what_the_dead_were_writing_is_swept_after_a_day(root: Path) -> None:
    first = DirectoryStore(str(root))
    first.put(KEY, b"data", CHUNK, "absent")
    first.close()
    for name, age_s in (("a" * 32, 25 * 3600), ("b" * 32, 60)):
        path = root / ".bdnfs/staging" / name
        path.write_bytes(b"torn")
        os.utime(path, (time.time() - age_s,) * 2)
    second = DirectoryStore(str(root))
    second.put("other", b"data", CHUNK, "absent")
    second.close()
    assert staged(root) == ["b" * 32]


def race(
    root: str, mine: bytes, go: "multiprocessing.synchronize.Event", won: "multiprocessing.Queue[str]"
) -> None:
    store = DirectoryStore(root)
    go.wait(WAIT_S)
    for number in range(100):
        key = f"race/{number % 3}/{number}"
        if store.put(key, mine * 1000, f"x/{mine.decode()}", "absent"):
            won.put(f"{key}={mine.decode()}")
        # Empty directories go while the other one makes them.
        store.delete([f"race/{(number + 1) % 3}/{mine.decode()}"])
    for _ in range(50):
        while True:
            held = store.get("counter", 10)
            if store.put("counter", str(int(held.data) + 1).encode(), JSON, held.version):
                break
    store.close()


def test_two_processes_put_each_object_once_and_lose_no_update(root: Path) -> None:
    store = DirectoryStore(str(root))
    store.put("counter", b"0", JSON, "absent")
    go, won = children.Event(), children.Queue()
    racing = [children.Process(target=race, args=(str(root), mine, go, won)) for mine in (b"a", b"b")]
    for child in racing:
        child.start()
    go.set()
    found = dict(won.get(timeout=WAIT_S).split("=") for _ in range(100))
    assert [ended(child) for child in racing] == [0, 0]
    assert won.empty()
    assert len(found) == 100
    for key, by in found.items():
        assert store.get(key, 1000)[:2] == (by.encode() * 1000, f"x/{by}")
    assert store.get("counter", 10).data == b"100"
    store.close()
    assert not staged(root)


def test_a_key_that_somebody_goes_on_changing_is_an_error_in_time(
    root: Path, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOCK_S", 0.2)
    store.put("other", b"data", CHUNK, "absent")
    with store._locked(KEY), pytest.raises(UnavailableError, match="another process"):
        store.put(KEY, b"data", CHUNK, "absent")
    with store._locked("other"):
        assert store.put(KEY, b"data", CHUNK, "absent")
    assert store.get(KEY, 4).data == b"data"


# ---- disks ---------------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_leaves_nothing_behind(disks: Disks) -> None:
    disk = disks.tmpfs(4)
    store = DirectoryStore(str(disk.at / "mirror"))
    store.put("kept", bytes(MIB), CHUNK, "absent")
    with pytest.raises(SpaceError, match="free some space"):
        store.put(KEY, bytes(8 * MIB), CHUNK, "absent")
    assert not staged(disk.at / "mirror")
    filler = fill_up(disk.at)
    with pytest.raises(SpaceError):
        store.put(KEY, bytes(MIB), CHUNK, "absent")
    assert store.size(KEY) is None
    filler.unlink()
    assert store.put(KEY, bytes(MIB), CHUNK, "absent")
    store.flush()
    store.close()


def test_a_disk_that_may_not_be_written_is_read(disks: Disks) -> None:
    disk = disks.tmpfs(4)
    store = DirectoryStore(str(disk.at))
    store.put(KEY, b"data", CHUNK, "absent")
    store.close()
    disk.remount("ro")
    store = DirectoryStore(str(disk.at))
    assert store.get(KEY, 4)[:2] == (b"data", CHUNK)
    assert [each.key for each in store.list("")] == [KEY]
    for call in (lambda: store.put("more", b"data", CHUNK, "absent"), lambda: store.delete([KEY])):
        with pytest.raises(UpstreamError, match=r"[Rr]ead-only"):
            call()
    store.flush()
    store.close()


def as_nobody(root: str, said: "multiprocessing.Queue[str]") -> None:
    os.setgid(65534)
    os.setuid(65534)
    store = DirectoryStore(root)
    said.put(store.get("open/key", 4).content_type)
    for call in (
        lambda: store.put("new", b"data", CHUNK, "absent"),
        lambda: store.get("closed/key", 4),
        lambda: store.delete(["open/key"]),
    ):
        try:
            call()
        except CredentialsError as error:
            said.put(str(error))


def test_another_user_reads_what_he_may_and_is_told_the_rest() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as above:
        os.chmod(above, 0o755)
        root = Path(above, "mirror")
        store = DirectoryStore(str(root))
        store.put("open/key", b"data", CHUNK, "absent")
        store.put("closed/key", b"data", CHUNK, "absent")
        store.close()
        (root / "closed").chmod(0o700)
        said = children.Queue()
        child = children.Process(target=as_nobody, args=(str(root), said))
        child.start()
        found = [said.get(timeout=WAIT_S) for _ in range(4)]
        assert ended(child) == 0
    assert found[0] == CHUNK
    assert all("Permission denied; ask its owner" in text for text in found[1:])


def test_a_sync_that_loses_writes_is_an_error_from_then_on(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.flush()  # nothing was put
    store.put(KEY, b"data", CHUNK, "absent")
    with monkeypatch.context() as patched:
        patched.setattr(module, "syncfs", failing(errno.EIO))
        with pytest.raises(UpstreamError, match="lost writes"):
            store.flush()
    # The kernel says it once.
    with pytest.raises(UpstreamError, match="lost writes"):
        store.flush()


def test_an_object_that_does_not_reach_the_disk_is_not_shown(
    root: Path, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("other", b"data", CHUNK, "absent")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", failing(errno.EIO))
        with pytest.raises(UnavailableError, match="check the disk"):
            store.put(KEY, b"data", CHUNK, "absent")
    assert store.size(KEY) is None
    assert not staged(root)


def failing(code: int) -> Callable[[int], None]:
    """A call on a disk that loses what is written to it, which can't be had here."""

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    return fail


# ---- opening -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}", "{}/", "{}/../mirror"])
def test_a_directory_is_named_by_its_path(root: Path, form: str) -> None:
    store = open_store(form.format(root), UpstreamConfig(), None)
    assert store.put(KEY, b"data", CHUNK, "absent")
    store.close()
    assert (root / KEY).read_bytes() == b"data"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mirror",
        "./mirror",
        "~/mirror",
        "/",
        "//",
        "file://host/mirror",
        "file://",
        "ftp://host/x",
        "/a\0b",
        "hf://a/b",
    ],
)
def test_what_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(SpecError, match="mirror"):
        open_store(url, UpstreamConfig(), None)


def test_a_directory_is_made_but_not_what_is_above_it(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path / "above/mirror"))
    with pytest.raises(NotFoundError, match="mounted"):
        store.put(KEY, b"data", CHUNK, "absent")
    (tmp_path / "above").mkdir()
    assert store.put(KEY, b"data", CHUNK, "absent")
    store.close()
