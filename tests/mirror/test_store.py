"""What every store promises, on every store."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from bdnfs.core.errors import IntegrityError, NotFoundError, UpstreamError
from bdnfs.core.units import MIB
from bdnfs.mirror import gcs, objects
from bdnfs.mirror.store import Store
from tests.mirror.stores import Stores
from tests.unit.cache.stocked import content

CHUNK, JSON = "application/vnd.baseten.bdn.chunk.v1+zstd", "application/json"
KEY = "bdn/org/name-1/objects/b3/ab/cd/abcdef"


def filled(store: Store, key: str, size: int) -> tuple[bytes, str]:
    into = bytearray(size)
    content_type = store.fill(key, memoryview(into))
    return bytes(into), content_type


@pytest.mark.parametrize("size", [0, 1, 8 * MIB])
def test_what_is_put_is_there_byte_for_byte_with_its_type(store: Store, size: int) -> None:
    data = content("object", size)
    assert store.put(KEY, memoryview(data), CHUNK, "absent")
    store.flush()
    assert filled(store, KEY, size) == (data, CHUNK)
    assert store.size(KEY) == size
    held = store.get(KEY, size)
    assert (held.data, held.content_type) == (data, CHUNK)
    assert held.version


def test_the_buffer_is_the_callers_again(store: Store) -> None:
    buffer = bytearray(b"first ")
    store.put(KEY, memoryview(buffer), CHUNK, "absent")
    buffer[:] = b"second"
    assert store.get(KEY, 100).data == b"first "


def test_what_is_there_is_not_put_again(store: Store) -> None:
    assert store.put(KEY, b"one", CHUNK, "absent")
    assert not store.put(KEY, b"two", JSON, "absent")
    assert store.get(KEY, 3)[:2] == (b"one", CHUNK)


def test_any_goes_over_what_is_there_and_what_is_not(store: Store) -> None:
    assert store.put("tag", b"one", CHUNK, "any")
    assert store.put("tag", b"two!", JSON, "any")
    assert store.get("tag", 4)[:2] == (b"two!", JSON)


def test_a_version_is_replaced_once(store: Store) -> None:
    assert store.put("tag", b"one", JSON, "absent")
    first = store.get("tag", 3).version
    assert store.put("tag", b"two", JSON, first)
    assert not store.put("tag", b"three", JSON, first)
    second = store.get("tag", 3)
    assert (second.data, second.version != first) == (b"two", True)
    store.delete(["tag"])
    assert not store.put("tag", b"four", JSON, second.version)
    assert store.size("tag") is None


def test_of_eight_that_put_what_is_absent_one_does(stores: Stores, store: Store) -> None:
    start = threading.Barrier(8)

    def put(number: int) -> bool:
        start.wait(30)
        return store.put(KEY, bytes([number]) * 1000, CHUNK, "absent")

    with ThreadPoolExecutor(8) as threads:
        done = list(threads.map(put, range(8)))
    assert any(done)
    if stores.atomic:
        assert sum(done) == 1
        assert store.get(KEY, 1000).data == bytes([done.index(True)]) * 1000


def test_of_eight_that_replace_a_version_one_does(stores: Stores, store: Store) -> None:
    store.put("tag", b"one", JSON, "absent")
    version = store.get("tag", 3).version
    start = threading.Barrier(8)

    def put(number: int) -> bool:
        start.wait(30)
        return store.put("tag", f"by {number}".encode(), JSON, version)

    with ThreadPoolExecutor(8) as threads:
        done = list(threads.map(put, range(8)))
    assert any(done)
    if stores.atomic:
        assert sum(done) == 1
        assert store.get("tag", 4).data == f"by {done.index(True)}".encode()


@pytest.mark.parametrize("size", [0, 999, 1001])
def test_an_object_of_another_length_fills_nothing_to_the_end(store: Store, size: int) -> None:
    store.put(KEY, bytes(1000), CHUNK, "absent")
    with pytest.raises(IntegrityError):
        filled(store, KEY, size)


def test_an_object_that_is_longer_than_expected_is_not_read_whole(store: Store) -> None:
    store.put(KEY, bytes(1000), CHUNK, "absent")
    with pytest.raises(IntegrityError):
        store.get(KEY, 999)
    assert store.get(KEY, 1000).data == bytes(1000)


def test_what_is_not_there(store: Store) -> None:
    store.put("other", b"", JSON, "absent")
    with pytest.raises(NotFoundError):
        store.get(KEY, 1)
    with pytest.raises(NotFoundError):
        filled(store, KEY, 1)
    with pytest.raises(NotFoundError):
        filled(store, KEY, 0)
    assert store.size(KEY) is None
    assert not list(store.list("bdn/"))


def test_a_listing_has_all_below_a_prefix_that_ends_at_a_slash(store: Store) -> None:
    keys = ["a/b/x", "a/b/deep/y", "a/bc/z", "a/b.json", "top"]
    for number, key in enumerate(keys):
        store.put(key, bytes(number), JSON, "absent")
    found = {each.key: each for each in store.list("")}
    assert {key: each.size for key, each in found.items()} == {key: n for n, key in enumerate(keys)}
    assert {each.key for each in store.list("a/b/")} == {"a/b/x", "a/b/deep/y"}
    assert {each.key for each in store.list("a/")} == set(keys) - {"top"}
    assert not list(store.list("a/nothing/"))
    spread_s = max(each.modified_s for each in found.values()) - min(
        each.modified_s for each in found.values()
    )
    assert 0 <= spread_s < 600


def test_a_listing_of_many_pages_is_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "_PAGE_KEYS", 10)  # moto's are as short
    keys = {f"many/{number % 7}/{number:03}" for number in range(30)}
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda key: store.put(key, b"x", JSON, "absent"), keys))
    assert {each.key for each in store.list("many/")} == keys
    assert len(list(store.list("many/"))) == len(keys)


def test_what_is_deleted_is_gone_and_what_is_not_there_is_no_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_DELETES_MAX", 5)
    keys = [f"gone/{number:02}" for number in range(14)]
    for key in (*keys, "stays"):
        store.put(key, b"x", CHUNK, "absent")
    # Some requests for several find all of them, some one and not another.
    store.delete([*keys[:7], "never/was", *keys[7:], "never/was/either"])
    store.delete(keys)
    store.delete([])
    assert [each.key for each in store.list("")] == ["stays"]
    assert store.put(keys[0], b"again", JSON, "absent")
    assert store.get(keys[0], 5)[:2] == (b"again", JSON)


def test_what_is_no_key_is_refused(store: Store) -> None:
    calls: tuple[Callable[[str], object], ...] = (
        lambda key: store.put(key, b"", JSON, "any"),
        lambda key: store.get(key, 1),
        lambda key: store.fill(key, memoryview(bytearray(1))),
        store.size,
        lambda key: store.delete([key]),
        lambda key: list(store.list(f"{key}/")),
    )
    for key in (
        "",
        "/a",
        "a//b",
        "../a",
        "a/../../b",
        "a/",
        ".bdnfs/lock",
        "a\0b",
        "a b",
        "é",
        "a/" + "b" * 256,
    ):
        for call in calls:
            with pytest.raises(UpstreamError, match="no key"):
                call(key)


def test_a_place_that_is_not_there(stores: Stores) -> None:
    store = stores.open(stores.unknown_url())
    for call in (
        lambda: store.put(KEY, b"", JSON, "absent"),
        lambda: store.get(KEY, 1),
        lambda: list(store.list("")),
    ):
        with pytest.raises(NotFoundError):
            call()
    store.close()
