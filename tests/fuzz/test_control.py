"""What comes over the control socket, from either side."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import bdnfs.session.daemon as daemon
from bdnfs.core.errors import BdnfsError, MountError
from bdnfs.session.control import EVENT_BYTES_MAX, DaemonSilentError, Event, Request, connect
from tests.fuzz.judging import FUZZ, check_message, judged
from tests.fuzz.mutations import VALUES, mutated

EVENT = msgspec.json.encode(
    Event("fetching", 1, 10, 5, 2, 1, {"origin": 5}, ("a warning",), "an error", "SpaceError")
)
LINES = mutated([EVENT + b"\n", EVENT]) | VALUES.map(lambda each: msgspec.json.encode(each) + b"\n")


@contextmanager
def answering(directory: Path, *pieces: bytes) -> Iterator[Path]:
    """A daemon that takes one connection, says this, and ends."""
    path = directory / "control.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    connection.recv(4096)
                    for piece in pieces:
                        connection.sendall(piece)
                except OSError:
                    return  # it has heard enough

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield path
        finally:
            thread.join(30)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("control")


@FUZZ
@given(lines=st.lists(LINES, max_size=4))
def test_whatever_a_daemon_says_is_an_event_or_an_error(place: Path, lines: list[bytes]) -> None:
    with answering(place, *lines) as path, connect(path) as control:

        def hear() -> list[Event]:
            control.send("follow")
            return list(control.events(None))

        found = judged(hear)
    if isinstance(found, list):
        for event in found:
            raised = judged(event.raise_error)
            assert raised is None or event.error is not None
    else:
        assert isinstance(found, MountError)


def test_a_daemon_that_goes_away_before_it_is_asked(place: Path) -> None:
    """Never the BrokenPipeError that the command line takes for an output nobody reads."""
    path = place / "gone.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with connect(path) as control:
            listener.accept()[0].close()
            with pytest.raises(DaemonSilentError, match="does not listen any more"):
                control.send("stop")


def test_a_daemon_that_never_ends_its_line_is_given_up(place: Path) -> None:
    """Not before some length that no event has, and well before memory is used up."""
    pieces = [b"x" * (1 << 20)] * 64
    with answering(place, *pieces) as path, connect(path) as control:
        with pytest.raises(MountError) as caught:
            control.ask("status")
        check_message(caught.value)
        assert len(control._buffer) <= EVENT_BYTES_MAX + 65536


REQUESTS = mutated([b'{"op":"status"}\n', b'{"op":"bound"}\n{"op":"stop"}\n', b'{"op":'])


@FUZZ
@given(data=REQUESTS | VALUES.map(lambda each: msgspec.json.encode(each) + b"\n"), size=st.integers(1, 5000))
def test_whatever_a_command_says_is_a_request_or_the_end(data: bytes, size: int) -> None:
    async def talk() -> list[Request]:
        ours, theirs = trio.testing.memory_stream_pair()

        async def say() -> None:
            for start in range(0, len(data), size):
                await ours.send_all(data[start : start + size])
            await ours.send_eof()

        heard = []
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(say)
                async for request in daemon._requests(theirs):  # type: ignore[arg-type]
                    heard.append(request)  # noqa: PERF401
        return heard

    heard = judged(lambda: trio.run(talk))
    assert not isinstance(heard, BdnfsError)
    assert all(isinstance(each.op, str) for each in heard)
