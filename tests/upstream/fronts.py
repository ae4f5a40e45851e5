"""Every local server with faults before it, and what bdnfs brings through them."""

import contextlib
import random
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bdnfs.core.errors import BdnfsError
from bdnfs.manifest.model import Manifest
from bdnfs.origins.base import Origin
from benchmarks.servers.faults import Fault, Faults
from tests.contract.azurite import AzureSite
from tests.contract.conftest import started
from tests.contract.gcs import GcsSite
from tests.contract.servers import HubSite, NginxSite, S3Site, SftpSite, Site
from tests.upstream.proxy import FaultyProxy, Twist
from tests.upstream.wire import Cut, FaultyWire

# r2 and cw are s3 but for their endpoints.
HTTP = ("hub", "nginx", "nginx-no-ranges", "s3", "azure", "gs")
KINDS = (*HTTP, "sftp")
# Read by the code that reads S3; each fault of its own is seen with --long.
ALIKE = ("azure",)
# Short enough to be waited for often.
STALL_S = 0.5
# A secret of each kind of store, and what a signed URL holds.
SECRETS = ("hidden-key", "PRIVATE KEY", "Signature=", "Key-Pair-Id=")
# How far a connection of sshd's has come: keys are exchanged, then who we are; then the subsystem starts, which
# it does at 2,400 to 2,600 bytes of OpenSSH 9.2; a file is being read.
LOGIN_BYTES, SUBSYSTEM_BYTES, READING_BYTES = 1500, 2500, 50_000


@dataclass(frozen=True)
class Front:
    """A site and the faults that stand before it."""

    kind: str
    site: Site
    faults: Faults

    def open(self, collection: str, path: str) -> Origin:
        """Return an origin that has no connection yet and knows nothing. path: where a source names a file."""
        return self.site.open(collection, path, stall_s=STALL_S)

    def manifest(self, collection: str, path: str) -> Manifest:
        """List the collection as it is now."""
        origin = self.open(collection, path)
        try:
            revision = origin.resolve(None)
            files = tuple(sorted(origin.list(revision), key=lambda file: file.path))
            return Manifest(f"{self.kind}:{collection}", origin.name, revision or "listing", files)
        finally:
            origin.close()

    def strike(self, fault: Fault, times: int | None, after: int = 0) -> None:
        """Let fault meet the requests for content, or the connections of what speaks no HTTP."""
        if self.kind != "sftp":
            fault = replace(fault, method="GET", match="/cdn/" if self.kind == "hub" else "")
        self.faults.add(replace(fault, times=times, after=after))


@contextlib.contextmanager
def fronted(kind: str, directory: Path) -> Iterator[Front]:
    """Start a server of this kind and put faults before it."""
    directory.mkdir()
    faults = Faults()
    with started(kind, directory) as site, contextlib.ExitStack() as stack:
        if isinstance(site, HubSite):
            cdn = stack.enter_context(FaultyProxy(_port(site.server.cdn_url), faults))
            hub = FaultyProxy(_port(site.server.url), faults)
            hub.places = {site.server.cdn_url: cdn.url, site.server.url: hub.url}
            site.endpoint = stack.enter_context(hub).url
        elif isinstance(site, SftpSite):
            site.reached = stack.enter_context(FaultyWire(site.port, faults)).port
        else:
            assert isinstance(site, NginxSite | S3Site | AzureSite | GcsSite)
            site.reached = stack.enter_context(FaultyProxy(site.port, faults)).port
        yield Front(kind, site, faults)


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


_EXPIRED = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"

# What a server before which this stands may do to one request; each of them alone.
HTTP_FAULTS: Mapping[str, Fault] = {
    "500": Fault(status=500),
    "503-retry-after": Fault(status=503, headers={"Retry-After": "0"}),
    "429": Fault(status=429),
    "404": Fault(status=404),
    "401": Fault(status=401),
    "expired-url": Fault(status=403, body=_EXPIRED),
    "no-content": Fault(status=204, body=""),
    "whole-file": Fault(ignore_range=True),
    "delay": Fault(delay_s=1.0),
    "stall": Fault(stall=True),
    "stall-before-the-body": Twist(truncate_at=0, stall=True),
    "slow": Fault(slow_bytes_per_s=2000),
    "slow-head": Twist(head_pause_s=0.02),
    "truncated-at-once": Fault(truncate_at=0),
    "truncated": Fault(truncate_at=70_000),
    "reset": Fault(reset=True),
    "wrong-bytes": Fault(wrong_bytes=True),
    "announced-longer": Twist(length_off=1000),
    "announced-shorter": Twist(length_off=-1000),
    "another-etag": Fault(headers={"ETag": '"0123456789abcdef"'}),
    "no-identity": Fault(headers={"ETag": "", "Last-Modified": ""}),
    "another-range": Fault(headers={"Content-Range": "bytes 0-9/10"}),
    "compressed": Fault(headers={"Content-Encoding": "gzip"}),
    "redirect-to-a-file": Fault(redirect_to="file:///etc/passwd"),
    "redirect-to-nobody": Fault(redirect_to="http://127.0.0.1:1/x?Signature=hidden-key"),
}

WIRE_FAULTS: Mapping[str, Fault] = {
    "banner-stall": Cut(stall=True),
    "banner-reset": Cut(reset=True),
    "login-stall": Cut(at=LOGIN_BYTES, stall=True),
    "login-reset": Cut(at=LOGIN_BYTES, reset=True),
    "login-truncated": Cut(truncate_at=LOGIN_BYTES),
    "subsystem-stall": Cut(at=SUBSYSTEM_BYTES, stall=True),
    "read-stall": Cut(at=READING_BYTES, stall=True),
    "read-reset": Cut(at=READING_BYTES, reset=True),
    "read-truncated": Cut(truncate_at=READING_BYTES),
    "read-wrong-bytes": Cut(at=READING_BYTES, wrong_bytes=True),
    "read-delay": Cut(at=READING_BYTES, delay_s=2.0),
    "read-slow": Cut(at=READING_BYTES, slow_bytes_per_s=2000),
}


def cases(*each: object) -> Any:
    """Return a test's parameters, the kind of server first; those of a kind read alike are for --long."""
    return pytest.param(*each, marks=[pytest.mark.long] if each[0] in ALIKE else [])


def faults_of(kind: str) -> Mapping[str, Fault]:
    """Return every fault this kind of server can be made to show, by name.

    A store without digests can't tell that bytes were exchanged behind an unchanged identity: docs/semantics.md
    says so, and it is not tried.
    """
    if kind == "sftp":
        return WIRE_FAULTS
    if kind == "hub":
        return HTTP_FAULTS
    return {name: fault for name, fault in HTTP_FAULTS.items() if name != "wrong-bytes"}


CUTS = (
    Cut(stall=True),
    Cut(reset=True),
    Cut(truncate_at=0),
    Cut(wrong_bytes=True),
    Cut(delay_s=1.0),
)


def dice(kind: str, seed: int) -> tuple[Fault, ...]:
    """Return a dozen faults of this kind of server with places and times that seed decides.

    Those of a Hub have wrong bytes among them at every odd seed, and at no other.
    """
    thrown = random.Random(seed)
    flips = kind == "hub" and seed % 2 == 1
    found: list[Fault] = [HTTP_FAULTS["wrong-bytes"]] * 4 if flips else []
    kinds = [fault for fault in faults_of(kind).values() if flips or not fault.wrong_bytes]
    for _ in range(12):
        place, pause_s = int(2 ** thrown.uniform(0, 23)), thrown.uniform(0.05, 1.0)
        if kind == "sftp":
            cut = thrown.choice(CUTS)
            at = Cut(truncate_at=place) if cut.truncate_at is not None else replace(cut, at=place)
            found.append(replace(at, delay_s=pause_s) if cut.delay_s else at)
        else:
            found.append(_varied(thrown.choice(kinds), place, pause_s))
    return tuple(found)


def _varied(fault: Fault, place: int, pause_s: float) -> Fault:
    """Return fault at another place or for another time, if it has one."""
    if fault.truncate_at:
        return Fault(truncate_at=place)
    return Fault(delay_s=pause_s) if fault.delay_s else fault


def assert_clear(error: BdnfsError) -> None:
    """Fail unless error says what was done and what to do, in one line, with nothing secret in it."""
    said = str(error)
    assert len(said) > 40, said
    assert ";" in said, said
    assert "\n" not in said, said
    shown = "".join(traceback.format_exception(error))
    assert not [secret for secret in SECRETS if secret in shown], shown
