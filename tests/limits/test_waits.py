"""Each wait that has a deadline reaches it: the constants are made small, nothing else."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import bdnfs.cache.index as cache_index
import bdnfs.session.control as control
import bdnfs.session.daemons as daemons
import bdnfs.session.directories as directories
import bdnfs.session.running as running
import bdnfs.session.unmounting as unmounting
from bdnfs.cache.layout import Layout
from bdnfs.cache.locks import open_lock_file, try_lock
from bdnfs.cache.opening import open_index, release
from bdnfs.core.errors import CacheError, DeadlineError
from bdnfs.session.control import connect
from bdnfs.session.deadlines import within
from bdnfs.session.options import Options
from bdnfs.session.records import RecordDirectory, location_file, location_lock
from bdnfs.spec.config import load_config
from bdnfs.spec.secret import Secrets

SHORT_S = 0.1
PATIENT_S = 60.0


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "cache")
    made.prepare()
    return made


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def hold(stack: ExitStack, path: Path) -> None:
    """Hold path's lock as another command would."""
    fd = open_lock_file(path)
    stack.callback(os.close, fd)
    assert try_lock(fd, exclusive=True)


def test_a_question_to_a_silent_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_ANSWER_S", SHORT_S)
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with connect(path) as connection, pytest.raises(DeadlineError, match="not got there"):
            connection.ask("status")


def test_the_lock_on_a_location(layout: Layout, held: ExitStack) -> None:
    hold(held, location_file(layout, "/m", "lock"))
    with pytest.raises(DeadlineError, match="another command has been at this mountpoint"):  # noqa: SIM117
        with location_lock(layout, "/m", SHORT_S):
            pass


def test_the_registry_of_directories(
    layout: Layout, held: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directories, "_REGISTRY_TIMEOUT_S", SHORT_S)
    hold(held, layout.mounts / "made.lock")
    with pytest.raises(DeadlineError, match=r"made\.lock: another command has held this"):
        directories.make(layout, str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_a_daemon_that_does_not_end_when_it_is_told(
    layout: Layout, held: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unmounting, "_END_TIMEOUT_S", SHORT_S)
    directory = RecordDirectory.make(layout)
    hold(held, directory.path / "lock")
    with pytest.raises(DeadlineError, match="did not end"):
        unmounting._await_end(directory)


def test_a_daemon_that_is_deaf_to_the_signal_that_ends_it(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemons, "_END_TIMEOUT_S", SHORT_S)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"deaf\n"
        daemons._end(layout, RecordDirectory.make(layout), process)
        assert process.returncode == -signal.SIGKILL


def test_a_record_that_no_daemon_ever_came_to(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Young ones are left to the command that is just making them."""
    directory = RecordDirectory.make(layout)
    unmounting.clear_dead(layout)
    assert directory.path.exists()
    monkeypatch.setattr(unmounting, "_LISTEN_TIMEOUT_S", -1.0)
    unmounting.clear_dead(layout)
    assert not directory.path.exists()


def test_upstream_that_never_answers() -> None:
    release_it = threading.Event()
    try:
        with pytest.raises(DeadlineError, match="listing x: no answer in the time given"):
            within(time.monotonic() + SHORT_S, lambda: release_it.wait(PATIENT_S), "listing x")
    finally:
        release_it.set()


def test_the_index_held_by_another_thread(layout: Layout) -> None:
    index = open_index(layout.root, SHORT_S)
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with index.write():
            inside.set()
            leave.wait(PATIENT_S)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert inside.wait(PATIENT_S)
        with pytest.raises(CacheError, match="this process has held it"), index.read():
            pass
    finally:
        leave.set()
        thread.join()
        release(index)


def test_a_daemon_that_does_not_begin_to_listen(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemons, "START_TIMEOUT_S", 0.0)
    config = load_config(None, {"BDNFS_CACHE_DIR": str(layout.root)})
    with ExitStack() as undo, pytest.raises(DeadlineError, match="has not begun to listen"):
        daemons.start_daemon(layout, config, [], Options(), Secrets(), None, undo)
    assert not [path for path in layout.mounts.iterdir() if path.is_dir()]


def test_a_command_that_does_not_begin(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "BEGIN_TIMEOUT_S", 0.0)
    with pytest.raises(DeadlineError, match="has not bound its mounts"):
        running.run_command(layout, [], ["true"])


def test_an_index_that_takes_for_ever_to_read(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_index, "READING_TIMEOUT_S", 0.0)
    index = open_index(layout.root, SHORT_S)
    try:
        with pytest.raises(CacheError, match="reading it through took longer"):
            index._survives_reading()
    finally:
        release(index)
