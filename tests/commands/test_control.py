"""A daemon that says nothing, or nothing of use: whoever follows it comes to an end."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import bdnfs.session.control as control
from bdnfs.core.errors import DeadlineError, MountError
from bdnfs.session.control import DaemonSilentError, connect


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Path]:
    """The socket of a daemon that is stopped: connections come, answers don't."""
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield path


def test_a_silent_daemon_is_given_up(silent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_SILENT_S", 0.05)
    with connect(silent) as connection:
        connection.send("follow")
        with pytest.raises(MountError, match="said nothing for"):
            list(connection.events(None))


def test_a_deadline_comes_first(silent: Path) -> None:
    with connect(silent) as connection, pytest.raises(DeadlineError, match="time given"):
        list(connection.events(0.0))


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(DaemonSilentError, match="does not answer"), connect(tmp_path / "control.sock"):
        pass
    # Its directory has just been removed, too.
    with (
        pytest.raises(DaemonSilentError, match="does not answer"),
        connect(tmp_path / "gone" / "control.sock"),
    ):
        pass
