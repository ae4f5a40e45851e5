"""`cache import` on a cache directory written by hand: what comes in, how, and what does not."""

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from bdnfs.cache.node import NodeCache
from bdnfs.core.errors import IntegrityError, SpaceError, SpecError, UpstreamError
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.core.steps import on_step
from bdnfs.core.units import MIB, TREE_MTIME_S
from bdnfs.session.hub_cache import scan
from bdnfs.session.importing import Importer
from tests.storage.disks import Disks
from tests.unit.cache.stocked import (
    admit,
    check_books,
    content,
    finished,
    is_root,
    manifest_of,
    open_cache,
    orphans,
    python,
    shown,
    stock,
)
from tests.unit.session.hub_cached import COMMIT, download, git_sha1, imported, outcomes, sha256

FILES = {
    "config.json": b"{}",
    "empty.txt": b"",
    "model.safetensors": content("model", CHUNK_BYTES + 4097),
    "sub/dir/other.bin": content("other", MIB),
    "sub/dir/same.bin": content("other", MIB),
}
SIZE = sum(map(len, FILES.values())) - MIB  # one content is there twice
LARGE = {path: data for path, data in FILES.items() if path.endswith(("bin", "tensors"))}
STEPS = (
    "import:entered",
    "import:placed",
    "import:charged",
    "import:verified",
    "import:moved",
    "import:published",
    "import:finished",
)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[NodeCache]:
    cache = open_cache(tmp_path / "cache")
    yield cache
    on_step(None)
    cache.close()


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    download(tmp_path / "hub", FILES)
    return tmp_path / "hub"


def stands(cache: NodeCache) -> None:
    """A snapshot of the same files, from a Hub that was never asked, is whole at once."""
    manifest = manifest_of(LARGE)
    assert cache.present_of(manifest) == manifest.total_bytes
    snapshot, pin = admit(cache, manifest)
    assert shown(cache.publish_snapshot(snapshot)) == LARGE
    pin.close()
    check_books(cache)


def ready(cache: NodeCache) -> None:
    """Everything is in its place, and nothing else."""
    check_books(cache)
    usage = cache.usage()
    assert (usage.present_bytes, usage.charged_bytes) == (SIZE, SIZE)
    assert not orphans(cache)
    for blob, _ in cache.blobs():
        assert cache.verify_blob(blob) is None


def test_it_is_linked_sealed_and_found_by_its_content(cache: NodeCache, hub: Path) -> None:
    done = imported(cache, hub)
    assert outcomes(done) == dict.fromkeys(FILES, "hardlink") | {"empty.txt": "here"}
    assert (done.state, done.present_bytes, done.files_whole) == ("whole", done.total_bytes, len(FILES))
    ready(cache)
    (item,) = cache.holdings()
    assert (item.row.source, item.row.revision) == ("import:hf://acme/tiny", COMMIT)
    assert (item.row.files, item.row.whole, item.pinned) == (len(FILES), True, None)
    blob = (hub / "models--acme--tiny/blobs" / sha256(FILES["model.safetensors"])).stat()
    assert (blob.st_nlink, blob.st_mode & 0o777, blob.st_mtime) == (2, 0o444, TREE_MTIME_S)
    with cache.read() as ledger:
        assert ledger.alias(f"git-sha1:{git_sha1(b'{}')}")
    stands(cache)


def test_what_one_tenant_takes_in_no_other_finds(cache: NodeCache, hub: Path) -> None:
    imported(cache, hub, tenant="acme")
    theirs, ours = manifest_of(LARGE), msgspec.structs.replace(manifest_of(LARGE), tenant="acme")
    assert (cache.present_of(theirs), cache.present_of(ours)) == (0, ours.total_bytes)
    assert outcomes(imported(cache, hub, tenant="other"))["model.safetensors"] == "hardlink"
    assert {item.row.tenant for item in cache.holdings()} == {"acme", "other"}
    assert cache.usage().present_bytes == 2 * SIZE
    check_books(cache)


def test_a_second_import_reads_nothing(cache: NodeCache, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported(cache, hub)
    monkeypatch.setattr("bdnfs.session.importing.Draft", None)
    assert outcomes(imported(cache, hub)) == dict.fromkeys(FILES, "here")
    ready(cache)


def test_what_is_here_by_another_way_is_only_named(cache: NodeCache, hub: Path) -> None:
    stock(cache, {"a.bin": FILES["sub/dir/other.bin"]})
    done = imported(cache, hub)
    assert {path for path, how in outcomes(done).items() if how == "here"} == {
        "empty.txt",
        "sub/dir/other.bin",
        "sub/dir/same.bin",
    }
    assert cache.usage().present_bytes == SIZE
    stands(cache)


def test_a_lost_index_finds_it_again(cache: NodeCache, hub: Path, tmp_path: Path) -> None:
    imported(cache, hub)
    cache.close()
    (tmp_path / "cache" / "index.lmdb").unlink()
    again = open_cache(tmp_path / "cache")
    ready(again)
    assert [(item.row.source, item.row.whole) for item in again.holdings()] == [
        ("import:hf://acme/tiny", True)
    ]
    stands(again)
    again.close()


def test_it_stays_while_there_is_room_and_goes_by_its_last_use(hub: Path, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache", capacity_bytes=64 * MIB)
    imported(cache, hub)
    stock(cache, {"next.bin": content("next", 40 * MIB)}, "2" * 40)
    assert {item.row.source for item in cache.holdings()} == {"import:hf://acme/tiny", "hf://org/model"}
    ready_bytes = cache.usage().present_bytes
    stock(cache, {"last.bin": content("last", 20 * MIB)}, "3" * 40)
    assert cache.usage().present_bytes < ready_bytes + 20 * MIB
    assert (hub / "models--acme--tiny/blobs" / sha256(FILES["model.safetensors"])).read_bytes() == FILES[
        "model.safetensors"
    ]
    check_books(cache)
    cache.close()


def test_without_symlinks_files_are_found_by_what_they_are(cache: NodeCache, tmp_path: Path) -> None:
    download(tmp_path / "hub", FILES, links=False)
    assert outcomes(imported(cache, tmp_path / "hub"))["model.safetensors"] == "hardlink"
    ready(cache)
    with cache.read() as ledger:
        assert ledger.alias(f"git-sha1:{git_sha1(b'{}')}") == ledger.alias(f"sha256:{sha256(b'{}')}")
    stands(cache)


def test_blobs_in_the_store_that_repositories_share(cache: NodeCache, hub: Path) -> None:
    blob = hub / "models--acme--tiny/blobs" / sha256(FILES["model.safetensors"])
    store = hub / "blobs" / "ab" / ("ab" * 32)
    store.parent.mkdir(parents=True)
    blob.rename(store)
    blob.symlink_to(f"../../blobs/ab/{'ab' * 32}")
    left_out: list[str] = []
    assert outcomes(imported(cache, hub, left_out))["model.safetensors"] == "hardlink"
    assert left_out == []
    ready(cache)


def test_several_commits_and_a_dataset(cache: NodeCache, hub: Path) -> None:
    download(hub, {**FILES, "config.json": b"{2}"}, commit="b" * 40)
    download(hub, {"a.csv": b"1,2"}, "datasets--acme--numbers")
    download(hub, {"a.bin": b"1"}, "models--gpt2")
    done = imported(cache, hub)
    assert {found.source.key for found, _ in done.results} == {
        "hf://acme/tiny",
        "hf://datasets/acme/numbers",
        "hf://gpt2",
    }
    assert done.state == "whole"
    assert cache.usage().present_bytes == SIZE + 3 + 3 + 1
    check_books(cache)


def test_what_is_not_what_its_name_says_is_left_alone(cache: NodeCache, hub: Path) -> None:
    blob = hub / "models--acme--tiny/blobs" / sha256(FILES["model.safetensors"])
    damaged = bytearray(FILES["model.safetensors"])
    damaged[-1] ^= 1
    blob.write_bytes(damaged)
    before = blob.stat()
    done = imported(cache, hub)
    assert outcomes(done)["model.safetensors"] == "damaged"
    assert outcomes(done)["sub/dir/other.bin"] == "hardlink"
    (error,) = done.errors
    assert isinstance(error, IntegrityError)
    assert str(blob) in str(error)
    after = blob.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (before.st_mode, before.st_mtime_ns, 1)
    check_books(cache)
    usage = cache.usage()
    assert usage.present_bytes == usage.charged_bytes == SIZE - len(FILES["model.safetensors"])
    assert not orphans(cache)
    blob.write_bytes(FILES["model.safetensors"])
    imported(cache, hub)
    ready(cache)


def test_a_download_of_which_nothing_comes_leaves_nothing(cache: NodeCache, tmp_path: Path) -> None:
    snapshot = download(tmp_path / "hub", {"a.bin": b"right"})
    (snapshot / "a.bin").resolve().write_bytes(b"wrong")
    assert outcomes(imported(cache, tmp_path / "hub")) == {"a.bin": "damaged"}
    assert cache.holdings() == []
    assert cache.blobs() == []
    cache.evict(unused_since_s=0, dry_run=False)
    assert not orphans(cache)


def test_what_does_not_fit_is_refused_one_by_one(hub: Path, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache", capacity_bytes=12 * MIB)
    kept = stock(cache, {"kept.bin": content("kept", 9 * MIB)}, "2" * 40, keep=True)
    done = imported(cache, hub)
    assert outcomes(done) == {
        "config.json": "hardlink",
        "empty.txt": "here",
        "model.safetensors": "no room",
        "sub/dir/other.bin": "hardlink",
        "sub/dir/same.bin": "hardlink",
    }
    (error,) = done.errors
    assert isinstance(error, SpaceError)
    model = sha256(FILES["model.safetensors"])
    for said in (f"blobs/{model}", "needs 8 MiB", "of 12 MiB are taken", "hf://org/model@222222222222"):
        assert said in str(error)
    assert cache.whole_tree(kept) is not None
    check_books(cache)
    assert cache.usage().present_bytes == cache.usage().charged_bytes
    cache.close()


def test_a_later_download_does_not_push_out_an_earlier_one(tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache", capacity_bytes=6 * MIB)
    for number in range(4):
        download(tmp_path / "hub", {"a.bin": content(f"{number}", 2 * MIB)}, commit=f"{number}" * 40)
    done = imported(cache, tmp_path / "hub")
    assert sorted(result.outcome for _, results in done.results for result in results) == [
        *["hardlink"] * 3,
        "no room",
    ]
    assert cache.usage().present_bytes == 6 * MIB
    check_books(cache)
    cache.close()


def test_a_link_takes_no_room_on_the_disk_and_a_copy_does(hub: Path, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache", reserve_bytes=1 << 60)
    assert imported(cache, hub).state == "whole"
    ready(cache)
    cache.close()


@pytest.mark.skipif(not is_root, reason="only root can own files of another user")
def test_what_another_user_owns_is_copied(cache: NodeCache, hub: Path) -> None:
    blob = hub / "models--acme--tiny/blobs" / sha256(FILES["model.safetensors"])
    os.chown(blob, 4711, 4711)
    before = blob.stat()
    assert outcomes(imported(cache, hub))["model.safetensors"] == "copy"
    assert blob.stat().st_mtime_ns == before.st_mtime_ns
    ready(cache)


def test_looking_changes_nothing(cache: NodeCache, hub: Path) -> None:
    before = sorted((path, path.lstat().st_mtime_ns, path.lstat().st_nlink) for path in hub.rglob("*"))
    done = Importer(cache, scan(hub, pytest.fail), lambda _: None).look()
    found = outcomes(done)
    assert sorted(found.values()) == ["hardlink"] * 3 + ["here"] * 2
    assert (
        sorted((path, path.lstat().st_mtime_ns, path.lstat().st_nlink) for path in hub.rglob("*")) == before
    )
    assert (cache.blobs(), cache.holdings()) == ([], [])
    assert not orphans(cache)


# -- hostile directories ------------------------------------------------------------------------------


def test_hostile_things_are_left_out_by_name(cache: NodeCache, hub: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s3cret")
    repository = hub / "models--acme--tiny"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    (snapshot / "out.txt").symlink_to(secret)
    (snapshot / "out2.txt").symlink_to("../../../../secret")
    (snapshot / "up.txt").symlink_to(f"../../blobs/../../../{secret.name}")
    (snapshot / "etc").symlink_to("/etc")
    (blobs / sha256(b"s3cret")).symlink_to(secret)
    (snapshot / "linked.bin").symlink_to(f"../../blobs/{sha256(b's3cret')}")
    (blobs / ("c" * 64)).mkdir()
    (snapshot / "directory.bin").symlink_to(f"../../blobs/{'c' * 64}")
    os.mkfifo(blobs / ("d" * 64))
    (snapshot / "fifo.bin").symlink_to(f"../../blobs/{'d' * 64}")
    os.mkfifo(snapshot / "fifo2.bin")
    (snapshot / "gone.bin").symlink_to(f"../../blobs/{'e' * 64}")
    (snapshot / "half.bin").symlink_to(f"../../blobs/{'f' * 64}.incomplete")
    (snapshot / "line\nbreak.bin").write_bytes(b"x")
    os.mkdir(os.fsencode(snapshot) + b"/\xff\xfe")
    with open(os.fsencode(snapshot) + b"/\xff\xfe/x", "wb"):
        pass
    (snapshot / "loop").symlink_to("loop")
    (repository / "snapshots" / "main").mkdir()
    download(hub, {"a.bin": b"1"}, "models--..--etc")
    download(hub, {"a.bin": b"1"}, "spaces--acme--demo")
    (hub / ".locks").mkdir()
    (hub / "version.txt").write_text("1")
    left_out: list[str] = []
    done = imported(cache, hub, left_out)
    assert outcomes(done) == dict.fromkeys(FILES, "hardlink") | {"empty.txt": "here"}
    names = {line.partition(": ")[0].rpartition("/")[2] for line in left_out}
    assert names >= {"out.txt", "out2.txt", "up.txt", "etc", "linked.bin", "directory.bin", "fifo.bin"}
    assert names >= {"fifo2.bin", "gone.bin", "half.bin", "line\nbreak.bin", "x", "loop", "main"}
    assert {"spaces--acme--demo"} <= names
    assert any("models--..--etc" in line for line in left_out)
    assert len(left_out) == 16
    assert done.state == "whole"
    ready(cache)


def test_a_very_deep_directory_is_walked(cache: NodeCache, hub: Path) -> None:
    fd = os.open(hub / "models--acme--tiny/snapshots" / COMMIT, os.O_RDONLY)
    for _ in range(1100):  # deeper than Python may recurse
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("x", os.O_CREAT, dir_fd=fd))
    os.close(fd)
    left_out: list[str] = []
    try:
        assert imported(cache, hub, left_out).state == "whole"
    finally:
        subprocess.run(["rm", "-r", hub / "models--acme--tiny/snapshots" / COMMIT / "d"], check=True)
    assert len(left_out) == 1
    assert "no tree can hold" in left_out[0]
    ready(cache)


@pytest.mark.parametrize("make", ["missing", "empty", "file", "hub above"])
def test_what_is_no_cache_directory_is_said(tmp_path: Path, make: str) -> None:
    place = tmp_path / "place"
    if make == "file":
        place.touch()
    elif make != "missing":
        (place / "hub").mkdir(parents=True) if make == "hub above" else place.mkdir()
    with pytest.raises(SpecError, match=r"hub/" if make == "hub above" else "models--"):
        scan(place, pytest.fail)


def test_an_unreadable_file_is_named(cache: NodeCache, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = hub / "models--acme--tiny/blobs" / sha256(FILES["model.safetensors"])
    real = os.open

    def refusing(path: object, *rest: int, **how: int) -> int:
        if path == blob:  # root may read anything
            raise PermissionError(13, "Permission denied", str(blob))
        return real(path, *rest, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refusing)
    done = imported(cache, hub)
    assert outcomes(done)["model.safetensors"] == "unreadable"
    assert isinstance(done.errors[0], UpstreamError)
    assert str(blob) in str(done.errors[0])
    check_books(cache)


# -- interruptions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [*STEPS[3:6], *(pytest.param(step, marks=pytest.mark.long) for step in (*STEPS[:3], *STEPS[6:]))],
)
def test_an_interruption_anywhere_leaves_nothing_torn(cache: NodeCache, hub: Path, step: str) -> None:
    def interrupt(reached: str) -> None:
        if reached == step:
            raise KeyboardInterrupt

    on_step(interrupt)
    with pytest.raises(KeyboardInterrupt):
        imported(cache, hub)
    on_step(None)
    check_books(cache)
    assert cache.usage().charged_bytes == cache.usage().present_bytes
    came = step in ("import:published", "import:finished")
    assert cache.usage().present_bytes == (SIZE if came else 0)
    imported(cache, hub)
    ready(cache)
    stands(cache)


def test_a_commit_that_fails_takes_the_files_back(
    cache: NodeCache, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(reached: str) -> None:
        if reached == "import:moved":
            raise SpaceError("no room for the index")

    on_step(fail)
    with pytest.raises(SpaceError):
        imported(cache, hub)
    on_step(None)
    assert list(cache.layout.blobs.glob("*/*")) == []
    check_books(cache)


def test_two_at_once(hub: Path, tmp_path: Path) -> None:
    dice = random.Random(7)
    for number in range(60):
        download(hub, {f"{number}.bin": dice.randbytes(1000 + number)}, commit=f"{number:040x}")
    code = """
import sys
from pathlib import Path
from tests.unit.cache.stocked import open_cache
from tests.unit.session.hub_cached import imported
cache = open_cache(Path(sys.argv[1]))
print(sorted({type(error).__name__ for error in imported(cache, Path(sys.argv[2])).errors}))
cache.close()
"""
    assert finished([python(code, tmp_path / "cache", hub) for _ in range(3)], 60) == ["[]\n"] * 3
    cache = open_cache(tmp_path / "cache")
    check_books(cache)
    assert all(item.row.whole for item in cache.holdings())
    assert len(cache.holdings()) == 61
    cache.evict(unused_since_s=0, dry_run=False)
    assert not orphans(cache)
    stands(cache)
    cache.close()


def test_a_linked_file_is_never_written_to_by_a_fill(cache: NodeCache, hub: Path) -> None:
    """What a dead import has linked in place without a row is replaced, not filled."""
    data = FILES["sub/dir/other.bin"]
    source = hub / "models--acme--tiny/blobs" / sha256(data)
    snapshot, pin = admit(cache, manifest_of({"a.bin": data}))
    record = cache.record(snapshot)
    assert record is not None
    path = cache.layout.blob(record.blobs[0])
    path.parent.mkdir()
    os.link(source, path)
    blob = cache.open_blob(record.blobs[0], len(data))
    assert os.fstat(blob.fd).st_ino != source.stat().st_ino
    blob.close()
    pin.close()


# -- filesystems --------------------------------------------------------------------------------------


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    if not is_root:
        pytest.skip("mounting a disk of one's own needs root")
    made = Disks(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("kind", "how"), [("ext4", "hardlink"), ("xfs", "reflink"), ("btrfs", "reflink"), ("tmpfs", "hardlink")]
)
def test_on_one_filesystem(disks: Disks, kind: str, how: str) -> None:
    disk = disks.tmpfs(100) if kind == "tmpfs" else disks.mount(disks.image(kind, 100), kind)
    download(disk.at / "hub", FILES)
    cache = open_cache(disk.at / "cache")
    try:
        assert outcomes(imported(cache, disk.at / "hub")) == dict.fromkeys(FILES, how) | {"empty.txt": "here"}
        ready(cache)
        stands(cache)
        if how == "reflink":
            blob = disk.at / "hub/models--acme--tiny/blobs" / sha256(FILES["model.safetensors"])
            assert (blob.stat().st_nlink, blob.stat().st_mtime != TREE_MTIME_S) == (1, True)
            blob.write_bytes(b"another")  # of its own: nobody who reads ours sees it
            ready_blob = next(blob for blob, row in cache.blobs() if row.size > CHUNK_BYTES)
            assert cache.verify_blob(ready_blob) is None
    finally:
        cache.close()


def test_from_one_filesystem_to_another(disks: Disks, hub: Path) -> None:
    small = disks.tmpfs(64 + 2)
    cache = open_cache(small.at / "cache")
    try:
        assert outcomes(imported(cache, hub))["model.safetensors"] == "copy"
        ready(cache)
        stands(cache)
    finally:
        cache.close()


def test_a_disk_too_small_for_the_copies(disks: Disks, hub: Path) -> None:
    cache = open_cache(disks.tmpfs(32 + 7).at / "cache")
    try:
        done = imported(cache, hub)
        assert outcomes(done)["model.safetensors"] == "no room"
        assert outcomes(done)["sub/dir/other.bin"] == "copy"
        check_books(cache)
        assert cache.usage().present_bytes == cache.usage().charged_bytes
    finally:
        cache.close()
