"""A node of a cluster: joins, serves chunks to its peers and to this machine's own fills, until it is told to end."""

import logging
import os
import secrets
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from bdnfs.cache.layout import check_directory, disk_free_bytes
from bdnfs.cache.locks import open_lock_file, try_lock, who_holds
from bdnfs.cache.node import NodeCache
from bdnfs.cache.share import SHARE, Share
from bdnfs.cache.storage import storage_error
from bdnfs.cluster.access import Access, open_access
from bdnfs.cluster.membership import Member
from bdnfs.core.errors import CacheError, SpecError
from bdnfs.core.units import format_size
from bdnfs.delivery.nursery import open_nursery
from bdnfs.serve.node.app import NodeApp, Self
from bdnfs.serve.node.blobs import Blobs
from bdnfs.serve.node.front import Front, open_front
from bdnfs.serve.node.gate import Gate
from bdnfs.serve.node.holdings import Holdings
from bdnfs.serve.node.metrics import Served
from bdnfs.serve.node.owning import Owning
from bdnfs.serve.node.peers import OtherNodes
from bdnfs.serve.node.telling import Telling
from bdnfs.serve.node.yielding import Yielding
from bdnfs.session.bugs import bug_lines
from bdnfs.session.connections import connections_max
from bdnfs.session.elsewhere import scanner
from bdnfs.session.joining import address_of, membership_of
from bdnfs.session.mirror import TENANT, Mirror, open_mirror
from bdnfs.session.priority import lower, yield_all
from bdnfs.spec.cluster import ClusterConfig
from bdnfs.spec.config import Config
from bdnfs.spec.secret import take_secrets

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Of the disk, where the config does not say how much is for the cluster.
_SHARE_PART = 10
_TIDY_EVERY_S = 2.0
_PROMISED_FOR_S = 1.0
# A stopped process may hold the index: what can't be looked up is not here, and peers don't wait for long.
_INDEX_S = 10.0
# The same warning within this is not said again.
_SAID_FOR_S = 60.0

Say = Callable[[str], None]


def serve_node(
    config: Config, environment: Mapping[str, str], say: Say, warn: Say, *, nginx: bool = True
) -> None:
    """Be a node of the config's cluster; return when SIGINT, SIGTERM or SIGHUP ended it. On the main thread.

    say:   takes a line when it listens; warn: what is wrong meanwhile
    nginx: use it where it is installed

    Raises SpecError for a config that makes no node, CredentialsError for a token or a mirror's secret that is not
    there, CacheError where another node has this cache.
    """
    cluster = config.cluster
    if cluster is None:
        raise SpecError(
            f"{config.path or 'the config'} names no cluster; write cluster: {{members: [...]}} or "
            "cluster: {redis: redis://…} into it, and mirror: <url>"
        )
    warn = _seldom(warn)
    access, tls, address = open_access(cluster), _server_tls(cluster), address_of(cluster)
    names = [config.mirror.secret_name] if config.mirror and config.mirror.secret_name else []
    mirror = open_mirror(config, take_secrets(config.secrets, names, environment))
    if mirror is None:
        raise SpecError("cluster: needs a mirror; write mirror: s3://bucket/prefix, or a directory")
    try:
        comes_back = lower()
        with (
            _warnings_to(warn),
            closing(NodeCache(config.cache, scanner(config.cache), lock_timeout_s=_INDEX_S)) as cache,
            _alone(cache.layout.root / "node") as directory,
        ):
            place = _Place(config, cluster, address, cache, directory, mirror)
            trio.run(_serve, place, access, tls, comes_back, nginx, say, warn)
    finally:
        mirror.close()


@dataclass(frozen=True)
class _Place:
    """Where a node is: what it is told, what it has. directory: its own, in the cache."""

    config: Config
    cluster: ClusterConfig
    address: str
    cache: NodeCache
    directory: Path
    mirror: Mirror

    @property
    def share_bytes(self) -> int:
        if self.cluster.share_bytes is not None:
            return self.cluster.share_bytes
        disk = os.statvfs(self.cache.layout.root)
        return disk.f_blocks * disk.f_frsize // _SHARE_PART


async def _serve(
    place: _Place,
    access: Access,
    tls: ssl.SSLContext | None,
    comes_back: bool,
    nginx: bool,
    say: Say,
    warn: Say,
) -> None:
    config, cluster, root, bug = place.config, place.cluster, place.cache.layout.root, bug_lines()
    numbers = [each for each in _ENDS if signal.getsignal(each) != signal.SIG_IGN]
    share = Share(root / SHARE, place.share_bytes, _Room(place.cache))
    await trio.to_thread.run_sync(share.scan)
    membership, kept_up = membership_of(cluster)
    me = Member(place.address, place.address, share.cap_bytes, secrets.token_hex(8))
    blobs = Blobs(place.cache, config.tenant or "")
    others = OtherNodes(membership, me.name, access, warn)
    yielding, served = Yielding(root, cluster.serve_rate, cluster.while_job), Served()
    limit = connections_max()
    with trio.open_signal_receiver(*numbers) as signals:
        async with open_nursery() as nursery:
            if kept_up is not None:
                await nursery.start(kept_up)
            owning = Owning(place.mirror.versions.store, share, others, nursery, bug)
            front = await open_front(cluster, tls, place.directory, limit, warn, nginx=nginx)

            def job(runs: bool) -> None:
                if comes_back:
                    yield_all([os.getpid(), *(front.nginx.pids() if front.nginx else [])], idle=runs)

            telling = Telling(me, cluster.name, membership, share, served, owning, yielding, front.nginx)
            holdings = Holdings(share, blobs, behind_nginx=front.nginx is not None)
            app = NodeApp(
                Self(me.name, config.tenant or TENANT, only_local=access == Access()),
                Gate(access.token),
                holdings,
                owning,
                yielding,
                served,
                telling,
                behind_nginx=front.nginx is not None,
                bug=bug,
                warn=warn,
            )

            nursery.start_soon(front.run, app, limit, lambda: _next(signals), lambda error: warn(bug(error)))
            nursery.start_soon(_tidy, holdings)
            nursery.start_soon(yielding.run, job)
            if front.nginx is not None:
                nursery.start_soon(front.nginx.supervise, lambda: job(yielding.job))
            try:
                async with membership.join(me):
                    say(_listening(me, cluster, front, share, place.mirror))
                    await _next(signals)
            finally:
                # The others know by now; what they have begun to be sent may end.
                with trio.CancelScope(shield=True):
                    await front.end(lambda: _next(signals))
            nursery.cancel_scope.cancel()
    others.close()
    blobs.close()


async def _next(signals: AsyncIterator[int]) -> None:
    async for _ in signals:
        return


async def _tidy(holdings: Holdings) -> None:
    while True:
        await trio.sleep(_TIDY_EVERY_S)
        await holdings.tidy()


class _Room:
    """How many more bytes the disk may take for the share: what was promised to fills comes first."""

    def __init__(self, cache: NodeCache) -> None:
        self._cache = cache
        self._promised_bytes, self._until_s = 0, 0.0

    def __call__(self) -> int:
        now_s = time.monotonic()
        if now_s >= self._until_s:
            usage = self._cache.usage()
            self._promised_bytes = max(0, usage.charged_bytes - usage.present_bytes) + usage.reserve_bytes
            self._until_s = now_s + _PROMISED_FOR_S
        return disk_free_bytes(self._cache.layout.root) - self._promised_bytes


@contextmanager
def _alone(directory: Path) -> Iterator[Path]:
    """Hold the node's directory for this process alone; raise CacheError where another node has it."""
    try:
        directory.mkdir(exist_ok=True, mode=0o700)
        check_directory(directory)
    except OSError as error:
        raise storage_error(directory, "made", error) from error
    path = directory / "lock"
    fd = open_lock_file(path)
    try:
        if not try_lock(fd, exclusive=True):
            raise CacheError(
                f"{directory.parent}: another node serves from this cache already: {who_holds(path)}; end it, or give "
                "this one another cache.directory"
            )
        yield directory
    finally:
        os.close(fd)


def _server_tls(config: ClusterConfig) -> ssl.SSLContext | None:
    """Return what takes connections of members alone, None without TLS; raise SpecError for files of no use."""
    if config.tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(config.tls.cert, config.tls.key)
        context.load_verify_locations(config.tls.ca)
    except (OSError, ValueError) as error:
        raise SpecError(
            f"cluster: tls: can't use {config.tls.cert}, {config.tls.key} and {config.tls.ca}: {error}; all have to be "
            "PEM files, the key without a password"
        ) from None
    return context


def _listening(me: Member, cluster: ClusterConfig, front: Front, share: Share, mirror: Mirror) -> str:
    scheme = "https" if cluster.tls else "http"
    where = ", ".join(f"{scheme}://{each}" for each in front.addresses)
    used, cap = format_size(share.used_bytes), format_size(share.cap_bytes)
    how = "through nginx" if front.nginx else "without nginx"
    return (
        f"listening at {where} as {me.name} of cluster {cluster.name}, {how}; share: {used} of {cap}; "
        f"mirror: {mirror.versions.store.name}"
    )


def _seldom(warn: Say) -> Say:
    """Return what says a warning once in a while only: what is wrong may be wrong for each chunk."""
    said: dict[str, float] = {}

    def once(line: str) -> None:
        now_s = time.monotonic()
        if now_s - said.get(line, -_SAID_FOR_S) >= _SAID_FOR_S:
            if len(said) > 256:
                said.clear()
            said[line] = now_s
            warn(line)

    return once


@contextmanager
def _warnings_to(warn: Say) -> Iterator[None]:
    """Say what the layers below log as a warning."""

    class Saying(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warn(record.getMessage())

    handler, logger = Saying(logging.WARNING), logging.getLogger("bdnfs")
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.propagate = propagates
        logger.removeHandler(handler)
