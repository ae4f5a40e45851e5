"""Every store with a server, when the server is gone, slow, overloaded, or wants other keys."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from bdnfs.core.errors import BdnfsError, CredentialsError, NotFoundError, UnavailableError
from bdnfs.mirror import objects
from bdnfs.mirror.store import Store
from benchmarks.servers.faults import Fault, Faults
from tests.contract.servers import free_port
from tests.mirror.conftest import CHECKING, REMOTE, started
from tests.mirror.stores import Stores
from tests.unit.cache.stocked import content
from tests.upstream.fronts import assert_clear
from tests.upstream.proxy import FaultyProxy, Twist

CHUNK = "application/vnd.baseten.bdn.chunk.v1"
KEY, DATA = "bdn/key", content("faulty", 300_000)
STALL_S = 0.3
# What all that may take on a busy machine; without an end it would be for ever.
LIMIT_S = 40.0


def fill(store: Store) -> bytes:
    into = bytearray(len(DATA))
    assert store.fill(KEY, memoryview(into)) == CHUNK
    return bytes(into)


COUNT = itertools.count()
CALLS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get(KEY, len(DATA)),
    "fill": fill,
    "size": lambda store: store.size(KEY),
    "put-absent": lambda store: store.put(f"other/{next(COUNT)}", DATA, CHUNK, "absent"),
    "put-any": lambda store: store.put("other", DATA, CHUNK, "any"),
    "list": lambda store: list(store.list("bdn/")),
    "delete": lambda store: store.delete(["other"]),
}
READS = ("get", "fill")
PASSING = {
    "503": Fault(status=503, headers={"Retry-After": "0"}),
    "429": Fault(status=429),
    "reset": Fault(reset=True),
    "silence": Fault(delay_s=60.0),
}
REFUSING = {"401": Fault(status=401), "403": Fault(status=403)}
BROKEN = {
    "truncated": Fault(truncate_at=70_000),
    "stall": Fault(stall=True),
    "trickle": Fault(slow_bytes_per_s=2000),
    "announced-longer": Twist(length_off=1000),
}


@dataclass(frozen=True)
class Front:
    """A server, and the faults that stand before it."""

    stores: Stores
    faults: Faults
    proxy: FaultyProxy


@pytest.fixture(scope="module", params=REMOTE)
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    faults = Faults()
    with (
        started(request.param, tmp_path_factory.mktemp(request.param)) as stores,
        FaultyProxy(stores.port, faults) as proxy,
    ):
        stores.reached = int(proxy.url.rpartition(":")[2])
        yield Front(stores, faults, proxy)


@pytest.fixture(scope="module")
def url(front: Front) -> str:
    """A store that holds one object."""
    url = front.stores.fresh_url()
    store = front.stores.open(url)
    assert store.put(KEY, DATA, CHUNK, "absent")
    store.close()
    return url


@pytest.fixture(autouse=True)
def _well(front: Front) -> Iterator[None]:
    front.faults.clear()
    yield
    front.faults.clear()


@pytest.fixture(scope="module")
def store(front: Front, url: str) -> Iterator[Store]:
    """Patient as a user's is."""
    store = front.stores.open(url)
    yield store
    store.close()


@pytest.fixture(scope="module")
def impatient(front: Front, url: str) -> Iterator[Store]:
    """One that gives up soon what does not get on, uploads as well."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(objects, "_UPLOAD_STALLS", 2)
        store = front.stores.open(url, stall_s=STALL_S)
    yield store
    store.close()


@contextlib.contextmanager
def within(limit_s: float) -> Iterator[None]:
    began_s = time.monotonic()
    yield
    assert time.monotonic() - began_s < limit_s


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", PASSING)
def test_what_may_pass_is_worth_another_try(
    front: Front, store: Store, impatient: Store, call: str, fault: str
) -> None:
    front.faults.add(_always(PASSING[fault]))
    with within(LIMIT_S), pytest.raises(UnavailableError) as caught:
        CALLS[call](impatient)
    assert_clear(caught.value)
    front.faults.clear()
    CALLS[call](store)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", REFUSING)
def test_what_is_refused_is_a_matter_of_credentials(
    front: Front, store: Store, call: str, fault: str
) -> None:
    front.faults.add(_always(REFUSING[fault]))
    with pytest.raises(CredentialsError) as caught:
        CALLS[call](store)
    assert_clear(caught.value)


@pytest.mark.parametrize("call", READS)
@pytest.mark.parametrize("fault", BROKEN)
def test_an_object_that_does_not_come_whole_is_never_taken_for_one(
    front: Front, store: Store, impatient: Store, call: str, fault: str
) -> None:
    front.faults.add(_always(BROKEN[fault]))
    with within(LIMIT_S), pytest.raises(BdnfsError) as caught:
        CALLS[call](impatient)
    assert_clear(caught.value)
    front.faults.clear()
    assert fill(store) == DATA


def test_nobody_is_asked_twice(front: Front, store: Store) -> None:
    """Whether and when to try again is for the caller to say."""
    front.faults.add(_always(Fault(status=503)))
    for call in CALLS.values():
        before = len(front.proxy.asked)
        with pytest.raises(UnavailableError):
            call(store)
        assert len(front.proxy.asked) == before + 1


@pytest.mark.parametrize("call", CALLS)
def test_a_server_that_is_not_there(front: Front, url: str, call: str) -> None:
    there = front.stores.reached
    front.stores.reached = free_port()
    try:
        store = front.stores.open(url, stall_s=STALL_S)
    finally:
        front.stores.reached = there
    with within(LIMIT_S), pytest.raises(UnavailableError) as caught:
        CALLS[call](store)
    assert_clear(caught.value)
    store.close()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("front", CHECKING, indirect=True)
def test_keys_that_are_wrong(front: Front, url: str, call: str) -> None:
    store = front.stores.open_wrong(url)
    with pytest.raises(CredentialsError) as caught:
        CALLS[call](store)
    assert_clear(caught.value)
    store.close()


def test_what_is_not_there_is_no_fault(store: Store) -> None:
    with pytest.raises(NotFoundError) as caught:
        store.get("nothing", 1)
    assert_clear(caught.value)


def _always(fault: Fault) -> Fault:
    return replace(fault, times=None)
