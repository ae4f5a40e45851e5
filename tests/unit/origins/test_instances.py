import threading
from typing import Any

import pytest

from bdnfs.core.errors import NotFoundError, UnavailableError
from bdnfs.origins.generic import identity
from bdnfs.origins.instances import Instances


class Store:
    """Counts what is opened and closed. An instance is what fsspec gives: a filesystem and a path."""

    def __init__(self, async_impl: bool = False) -> None:
        self.async_impl = async_impl
        self.opened: list[tuple[Any, str]] = []
        self.closed: list[tuple[Any, str]] = []

    def connect(self) -> tuple[Any, str]:
        self.opened.append((self, f"/{len(self.opened)}"))
        return self.opened[-1]


def test_an_instance_is_used_again_but_never_by_two_at_once() -> None:
    store = Store()
    instances = Instances(store.connect, store.closed.append, 2, 0.05)
    with instances.one("x") as first, instances.one("x") as second:
        assert first is not second
        with pytest.raises(UnavailableError, match="no connection became free"), instances.one("x"):
            pass
    with instances.one("x") as again:
        assert again in (first, second)
    instances.close()
    assert sorted(store.closed) == sorted(store.opened, key=lambda each: each[1]) or len(store.closed) == 2


def test_a_failed_instance_is_closed_and_its_place_given_free() -> None:
    store = Store()
    instances = Instances(store.connect, store.closed.append, 1, 0.05)
    for _ in range(3):
        with pytest.raises(OSError, match="broke"), instances.one("x"):
            raise OSError("broke")
    assert store.closed == store.opened
    with pytest.raises(NotFoundError), instances.one("x"):
        raise NotFoundError("a missing file says nothing about the connection")
    assert len(store.closed) == 3


def test_a_connection_that_never_comes_gives_its_place_free() -> None:
    def fail() -> None:
        raise OSError("refused")

    instances = Instances(fail, lambda _: None, 1, 0.05)
    for _ in range(3):
        with pytest.raises(OSError, match="refused"), instances.one("x"):
            pass


def test_an_async_filesystem_is_shared_by_all() -> None:
    store = Store(async_impl=True)
    instances = Instances(store.connect, store.closed.append, 1, 0.05)
    with instances.one("x"):
        pass
    with instances.one("x") as first, instances.one("x") as second:
        assert first is second
    assert len(store.opened) == 1


def test_what_comes_back_after_close_is_closed() -> None:
    store = Store()
    instances = Instances(store.connect, store.closed.append, 1, 0.05)
    borrowed = threading.Event()
    closed = threading.Event()

    def use() -> None:
        with instances.one("x"):
            borrowed.set()
            closed.wait(10)

    thread = threading.Thread(target=use)
    thread.start()
    assert borrowed.wait(10)
    instances.close()
    assert store.closed == []
    closed.set()
    thread.join(10)
    assert store.closed == store.opened


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"ETag": '"x"', "LastModified": 5}, '"x" 5'),
        ({"etag": "a", "checksum": "b"}, "a"),
        ({"mtime": 1.5, "created": 2, "atime": 3}, "1.5"),
        ({"last-modified": "Mon"}, "Mon"),
        ({"size": 1, "name": "x", "created": 3}, ""),
        ({"etag": None, "mtime": ""}, ""),
    ],
)
def test_identity_takes_what_changes_with_the_file(info: dict[str, Any], expected: str) -> None:
    assert identity(info) == expected
