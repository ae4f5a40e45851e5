"""A connection without HTTP that stops anywhere: an error in time, and no traceback of a library's thread."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bdnfs.core.errors import UnavailableError
from bdnfs.origins import sftp
from bdnfs.origins.registry import open_origin
from benchmarks.servers.faults import Faults
from tests.contract.conftest import started
from tests.contract.servers import SftpSite
from tests.upstream.fronts import STALL_S, assert_clear
from tests.upstream.wire import Cut, FaultyWire

FILE = b"x" * 300_000
# From the banner to the first bytes of the file.
PLACES = range(0, 7200, 650)


@pytest.mark.parametrize("fault", [{"stall": True}, {"reset": True}], ids=["stall", "reset"])
def test_sftp_ends_in_time_wherever_the_connection_stops(
    tmp_path: Path, fault: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp, "_CONNECT_TIMEOUT_S", 2.0)
    with started("sftp", tmp_path) as site:
        assert isinstance(site, SftpSite)
        site.put("files", {"file.bin": FILE})
        origin, _, entry = site.placed("files", {"file.bin": FILE})["file.bin"]
        origin.close()

        def stopped(place: int) -> float:
            faults = Faults()
            faults.add(Cut(at=place, times=None, **fault))  # type: ignore[arg-type]
            with FaultyWire(site.port, faults) as wire:
                source = site.source("files", port=wire.port)
                origin = open_origin(source, site.upstream(stall_s=STALL_S), site.secret)
                began_s = time.monotonic()
                with pytest.raises(UnavailableError) as caught:
                    origin.read(None, entry, 0, memoryview(bytearray(len(FILE))))
                assert_clear(caught.value)
                origin.close()
                return time.monotonic() - began_s

        with ThreadPoolExecutor(8) as threads:
            took_s = dict(zip(PLACES, threads.map(stopped, PLACES), strict=True))
        assert max(took_s.values()) < 30.0, took_s
