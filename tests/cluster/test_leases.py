"""Leases in a real Redis: joined, renewed, expired, taken over; Redis killed, stopped, restarted, locked, lied in."""

import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import coredis
import msgspec
import pytest
import trio
import trustme

from bdnfs.cluster.leases import LeasedMembership
from bdnfs.cluster.membership import Member
from bdnfs.core.errors import CredentialsError, SpecError, UpstreamError
from bdnfs.spec.cluster import RedisConfig
from bdnfs.spec.secret import Secret
from tests.cluster.redis import DEADLINE_S, HOST, PASSWORD, RedisServer

# A connection of coredis that can't be made leaves its buffers for the collector to find.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
    pytest.mark.usefixtures("collected"),
]
# Long enough for a busy machine to renew in time; short where its end is what a test is about.
TTL_S, SHORT_S = 2.4, 1.0


def node(index: int, incarnation: str = "first") -> Member:
    return Member(f"node{index}:7891", f"node{index}:7891", 1 << 30, incarnation)


def trio_run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(DEADLINE_S):
            await test()

    trio.run(bounded)


@asynccontextmanager
async def opened(server: RedisServer, cluster: str, ttl_s: float = TTL_S) -> AsyncIterator[LeasedMembership]:
    async with trio.open_nursery() as nursery:
        membership = LeasedMembership(server.config, cluster, ttl_s)
        await nursery.start(membership.run)
        yield membership
        nursery.cancel_scope.cancel()


async def stays_so(membership: LeasedMembership, wait_s: float = 1.3 * TTL_S) -> None:
    """For longer than a lease."""
    with trio.move_on_after(wait_s) as waited:
        await membership.changed(membership.members())
    assert waited.cancelled_caught


def warned(caplog: pytest.LogCaptureFixture, words: str = "") -> list[str]:
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [line for line in lines if words in line]


async def come_to(membership: LeasedMembership, *expected: Member) -> None:
    seen = membership.members()
    while seen != frozenset(expected):
        seen = await membership.changed(seen)


def test_who_joins_is_known_at_once_and_who_leaves_is_gone(redis: RedisServer) -> None:
    async def test() -> None:
        async with (
            opened(redis, "simple") as one,
            opened(redis, "simple") as two,
            opened(redis, "other") as far,
        ):
            assert one.members() == frozenset()
            async with one.join(node(1)):
                assert one.members() == {node(1)}
                await come_to(two, node(1))
                async with two.join(node(2)):
                    # What was known when it joined came with the answer.
                    assert two.members() == {node(1), node(2)}
                    await come_to(one, node(1), node(2))
                assert two.members() == {node(1)}
                await come_to(one, node(1))
            assert one.members() == frozenset()
            await come_to(two)
            assert far.members() == frozenset()

    trio_run(test)


def test_a_lease_is_renewed_for_as_long_as_it_is_needed(redis: RedisServer) -> None:
    async def test() -> None:
        async with opened(redis, "renewed") as one, opened(redis, "renewed") as two, one.join(node(1)):
            await come_to(two, node(1))
            await stays_so(two, 1.6 * TTL_S)

    trio_run(test)


def test_twenty_that_join_at_once_all_know_each_other(redis: RedisServer) -> None:
    async def test() -> None:
        everyone = [node(index) for index in range(20)]

        known: list[Member] = []
        async with trio.open_nursery() as nursery, opened(redis, "many") as looker:
            for me in everyone:
                nursery.start_soon(_be, redis, me, everyone, known)
            while len(known) < len(everyone):
                await trio.sleep(0.05)
            assert looker.members() == frozenset(everyone)
            nursery.cancel_scope.cancel()
        # They left on their way out, all cancelled: nobody has to wait for their leases to end.
        async with opened(redis, "many") as looker:
            assert looker.members() == frozenset()

    trio_run(test)


async def _be(server: RedisServer, me: Member, everyone: list[Member], known: list[Member]) -> None:
    async with opened(server, "many", 20.0) as membership, membership.join(me):
        await come_to(membership, *everyone)
        known.append(me)
        await trio.sleep_forever()


KILLED = """
import sys, msgspec, trio
from bdnfs.cluster.leases import LeasedMembership
from bdnfs.cluster.membership import Member
from bdnfs.spec.cluster import RedisConfig

async def main():
    async with trio.open_nursery() as nursery:
        membership = LeasedMembership(RedisConfig('127.0.0.1', int(sys.argv[1])), 'killed', float(sys.argv[2]))
        await nursery.start(membership.run)
        async with membership.join(Member('node1:7891', 'node1:7891', 1 << 30, sys.argv[3])):
            print('joined', flush=True)
            await trio.sleep_forever()

trio.run(main)
"""


def _another_process(server: RedisServer, ttl_s: float, incarnation: str) -> "subprocess.Popen[bytes]":
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(server.port), str(ttl_s), incarnation], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"joined\n"
    return child


def test_a_killed_node_is_gone_with_its_lease_and_back_at_once(redis: RedisServer) -> None:
    async def test() -> None:
        async with opened(redis, "killed") as looker:
            child = await trio.to_thread.run_sync(_another_process, redis, SHORT_S, "a")
            try:
                await come_to(looker, node(1, "a"))
            finally:
                child.kill()
                child.communicate()
            await come_to(looker)
            # A long lease is no hindrance to the same node started anew.
            child = await trio.to_thread.run_sync(_another_process, redis, 3600.0, "b")
            try:
                await come_to(looker, node(1, "b"))
            finally:
                child.kill()
                child.communicate()
            async with looker.join(node(1, "c")):
                assert looker.members() == {node(1, "c")}

    trio_run(test)


def test_of_two_under_one_name_the_later_has_it(redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with opened(redis, "name") as one, opened(redis, "name") as two, one.join(node(1, "a")):
            async with two.join(node(1, "b")):
                assert two.members() == {node(1, "b")}
                await come_to(one, node(1, "b"))
                await stays_so(two, TTL_S)
            await come_to(one, node(1, "a"))
            await come_to(two, node(1, "a"))

    trio_run(test)
    lines = warned(caplog, "node1:7891")
    assert len(lines) == 2, lines
    assert lines[0].startswith("another node joined as node1:7891")
    assert lines[1] == "node1:7891 is a member again"


def test_one_membership_is_one_node(redis: RedisServer) -> None:
    async def test() -> None:
        async with opened(redis, "once") as one, one.join(node(1)):
            with pytest.raises(SpecError, match="already, as node1"):
                async with one.join(node(2)):
                    pass
            assert one.members() == {node(1)}

    trio_run(test)


def test_redis_killed_and_restarted_without_what_it_knew(
    serve_redis: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody forgets anybody: not while it is away, and not while the others come back to it one by one."""
    server = serve_redis()
    caplog.set_level(logging.INFO, "bdnfs")

    async def test() -> None:
        async with opened(server, "c") as one, opened(server, "c") as two, one.join(node(1)):
            async with two.join(node(2)):
                await come_to(one, node(1), node(2))
                await come_to(two, node(1), node(2))
                caplog.clear()
                server.kill()
                while len(warned(caplog)) < 2:
                    await trio.sleep(0.02)
                await stays_so(one)
                # A line of each of the two for the change, and none for their tries.
                assert len(warned(caplog, "the 2 members last known go on")) == len(warned(caplog)) == 2
                await trio.to_thread.run_sync(server.start)
                while len(warned(caplog, "answers again")) < 2:
                    assert one.members() == two.members() == {node(1), node(2)}
                    await trio.sleep(0.02)
                await stays_so(one)
                # Both are back, and so is who comes new.
                async with opened(server, "c") as three:
                    await come_to(three, node(1), node(2))
                    async with three.join(node(3)):
                        await come_to(two, node(1), node(2), node(3))
            await come_to(one, node(1))

    trio_run(test)


def test_a_node_starts_while_redis_is_away_and_is_known_once_it_is_back(
    serve_redis: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = serve_redis()
    server.kill()

    async def test() -> None:
        async with opened(server, "c") as one, one.join(node(1)):
            assert one.members() == {node(1)}
            await stays_so(one)
            (line,) = warned(caplog)
            assert "last known go on" in line
            assert f"redis://{HOST}:{server.port}/0" in line
            await trio.to_thread.run_sync(server.start)
            async with opened(server, "c") as two:
                await come_to(two, node(1))

    trio_run(test)


def test_a_redis_that_hangs_keeps_nobody_waiting(
    serve_redis: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = serve_redis()

    async def test() -> None:
        async with opened(server, "c") as one, opened(server, "c") as two:
            async with two.join(node(2)), one.join(node(1)):
                await come_to(one, node(1), node(2))
                await come_to(two, node(1), node(2))
                server.signal(signal.SIGSTOP)
                while len(warned(caplog, "last known go on")) < 2:
                    assert one.members() == two.members() == {node(1), node(2)}
                    await trio.sleep(0.02)
                server.signal(signal.SIGCONT)
                await stays_so(one)
                server.signal(signal.SIGSTOP)
                began = trio.current_time()
            # Both left, and waited for a silent Redis for two thirds of a lease.
            assert trio.current_time() - began < 20.0
            server.signal(signal.SIGCONT)

    trio_run(test)


def test_a_user_with_few_rights_over_tls(serve_redis: Callable[..., RedisServer]) -> None:
    server = serve_redis(user=True, tls=True)

    async def test() -> None:
        async with opened(server, "c") as one, opened(server, "c") as two, one.join(node(1)):
            await come_to(two, node(1))

    trio_run(test)


def _refused(config: RedisConfig, caplog: pytest.LogCaptureFixture, expected: type[Exception]) -> str:
    async def test() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(LeasedMembership(config, "c", TTL_S).run)

    with pytest.raises(BaseExceptionGroup) as caught:
        trio_run(test)
    (error,) = caught.value.exceptions
    assert type(error) is expected
    said = str(error) + repr(config) + caplog.text
    assert PASSWORD not in said
    assert "wrong-Pa55" not in said
    return str(error)


def test_a_wrong_password_is_said_at_once_and_shown_nowhere(
    serve_redis: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    config = serve_redis(user=True).config
    wrong = msgspec.structs.replace(config, password=Secret("wrong-Pa55"))
    assert "refused the user or the password" in _refused(wrong, caplog, CredentialsError)
    nobody = msgspec.structs.replace(config, username=None, password=None)
    assert "refused the user or the password" in _refused(nobody, caplog, CredentialsError)


def test_a_user_without_the_rights_is_told_so(
    serve_redis: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = serve_redis()

    async def lower() -> None:
        async with coredis.Redis(HOST, server.port) as client:
            await client.acl_setuser("bdnfs", "on", f">{PASSWORD}", "~bdnfs:*", "-@all", "+eval")

    trio.run(lower)
    config = msgspec.structs.replace(server.config, username="bdnfs", password=Secret(PASSWORD))
    assert "may not do what is needed" in _refused(config, caplog, CredentialsError)


def test_an_untrusted_certificate_is_said_at_once(
    serve_redis: Callable[..., RedisServer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve_redis(tls=True)
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    other = msgspec.structs.replace(server.config, ca=str(tmp_path / "other.pem"))
    assert "its certificate is not trusted" in _refused(other, caplog, UpstreamError)
    named = msgspec.structs.replace(server.config, host="localhost")
    assert "its certificate is not trusted" in _refused(named, caplog, UpstreamError)
    with pytest.raises(SpecError, match=r"missing\.pem"):
        LeasedMembership(msgspec.structs.replace(other, ca=str(tmp_path / "missing.pem")), "c")


def test_what_no_node_wrote_is_ignored_and_said_once(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    def said(**fields: Any) -> bytes:
        sound = {"name": "x:1", "address": "x:1", "share_bytes": 1, "incarnation": "i"}
        return msgspec.json.encode(sound | fields)

    hostile: dict[str | bytes, bytes] = {
        "not json": b"\xff{",
        "deep": b"[" * 1000,
        "x:1": said(name="y:1"),
        "sp ace:1": said(name="sp ace:1"),
        "a:1": said(name="a:1", address="a:1/../etc"),
        "b:1": said(name="b:1", address="b:99999"),
        "c:1": said(name="c:1", share_bytes=-1),
        "d:1": said(name="d:1", share_bytes="much"),
        "e:1": said(name="e:1", incarnation="\n" * 10),
        "f:1": b'"text"',
        b"\xff\xfe": said(),
        "long": b"x" * 2000,
        "g" * 2000: said(),
    }

    async def test() -> None:
        async with (
            coredis.Redis(HOST, redis.port) as client,
            opened(redis, "hostile", SHORT_S) as one,
            one.join(node(1)),
        ):
            await client.hset("bdnfs:{hostile}:members", hostile)
            # A field of a newer version is no reason to know a node no more.
            newer = said(name="n:1", address="n:1", colour="blue")
            await client.hset("bdnfs:{hostile}:members", {"n:1": newer})
            await come_to(one, node(1), Member("n:1", "n:1", 1, "i"))
            # Nobody renews them: what was only written goes like any lease that ends.
            await come_to(one, node(1))
            # One of the keys lost, as by an eviction: it heals.
            await client.delete(["bdnfs:{hostile}:ends"])
            async with opened(redis, "hostile", SHORT_S) as two:
                await come_to(two, node(1))
            # Of another type altogether: those last known go on.
            await client.set("bdnfs:{hostile}:members", b"x")
            while "wrong kind of value" not in caplog.text:
                await trio.sleep(0.02)
            assert one.members() == {node(1)}

    trio_run(test)
    (line,) = warned(caplog, "no node wrote")
    assert f"holds {len(hostile) - 2} leases" in line


def test_a_cluster_that_is_no_more_leaves_nothing(redis: RedisServer) -> None:
    async def test() -> None:
        async with (
            coredis.Redis(HOST, redis.port) as client,
            opened(redis, "brief") as one,
            one.join(node(1)),
        ):
            keys = await client.keys("bdnfs:{brief}:*")
            assert len(keys) == 3
            for key in keys:
                assert 0 < await client.pttl(key) <= 10_000 * TTL_S

    trio_run(test)
