"""The doctor's findings: each in words, nothing left behind."""

import os
from pathlib import Path

import pytest

from bdnfs.fs import machine
from bdnfs.fs.machine import Finding, findings
from bdnfs.fs.mounts import mount_table


def named(found: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


def test_everything_is_tried_and_nothing_left(tmp_path: Path) -> None:
    found = findings(str(tmp_path / "not" / "yet" / "there"))
    assert os.listdir(tmp_path) == []
    assert [mount for mount in mount_table() if "bdnfs-doctor" in mount.mountpoint] == []
    assert len(found) == len(named(found)) >= 13
    for finding in found:
        assert finding.detail, finding
        assert finding.ok or finding.remedy, f"says no way out: {finding}"


def test_root_with_fuse_can_do_everything_that_mounting_needs(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs root and /dev/fuse")
    found = named(findings(str(tmp_path)))
    for name in ("fuse device", "fusermount3", "mounting", "user namespaces", "hand-off", "hard links"):
        assert found[name].ok, found[name]


def test_what_cant_be_tried_is_a_finding_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(what: str) -> str:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(machine, "_try", broken)
    found = named(findings(str(tmp_path)))
    assert not found["mounting"].ok
    assert "could not be tried" in found["mounting"].detail


@pytest.mark.parametrize(
    ("fstype", "fit"), [("ext4", True), ("overlay", False), ("nfs4", False), ("fuse.x", False)]
)
def test_an_unfit_filesystem_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fstype: str, fit: bool
) -> None:
    mounts = [mount._replace(fstype=fstype) for mount in mount_table()]
    monkeypatch.setattr(machine, "mount_table", lambda: mounts)
    finding = machine._filesystem(tmp_path)
    assert finding.ok is fit
    assert bool(finding.remedy) is not fit


def test_a_cache_place_nobody_may_write_to_is_told() -> None:
    found = named(findings("/proc/bdnfs"))
    assert not found["cache directory"].ok
    assert "cache.directory" in found["cache directory"].remedy
