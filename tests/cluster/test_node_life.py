"""A node's life: how it starts, whom it lets in, what it does for the job beside it, how it ends."""

import os
import random
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from bdnfs.cache.jobs import is_job_here, job_here
from bdnfs.core.ranges import CHUNK_BYTES
from tests.cluster.redis import RedisServer
from tests.cluster.serving import BDNFS, TOKEN, MirrorDirectory, Serving, children, is_running, until
from tests.contract.servers import free_port

_dice = random.Random(6)
SIZE = 300_000


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Callable[[], Serving]]:
    """Return a function that makes a node, yet to be started; all have one mirror."""
    mirror, made = MirrorDirectory(tmp_path / "mirror"), list[Serving]()

    def make() -> Serving:
        made.append(Serving(tmp_path / f"node{len(made)}", mirror))
        return made[-1]

    yield make
    for serving in made:
        serving.end()


@pytest.fixture
def node(nodes: Callable[[], Serving]) -> Serving:
    return nodes()


def put(node: Serving, size: int = SIZE) -> tuple[str, bytes]:
    data = _dice.randbytes(size)
    return node.mirror.put(data)[0], data


# -- starting -------------------------------------------------------------------------------------


def test_what_makes_no_node_is_refused_in_one_line(node: Serving) -> None:
    node.configure({"token_file": None, "listen": f"0.0.0.0:{node.port}"})
    node.refused(2, "can be reached from other machines", "token_file")
    node.configure({"token_file": str(node.place / "missing")})
    node.refused(3, "missing", "token")
    node.configure({"members": ["10.0.0.1:7891"]})
    node.refused(2, node.address, "members")
    node.configure(mirror=None)
    node.refused(2, "mirror")
    with socket.create_server(("127.0.0.1", node.port)):
        node.configure()
        node.refused(2, f"127.0.0.1:{node.port}", "listen")


def test_two_nodes_on_one_cache_are_one_too_many(nodes: Callable[[], Serving]) -> None:
    first, second = nodes(), nodes()
    first.start()
    second.cache = first.cache
    second.configure()
    second.refused(9, "another node", str(first.process.pid))
    assert first.ask("/healthz").status == 200
    first.stop()
    second.start()
    second.stop()


# -- nginx and the end ----------------------------------------------------------------------------


def test_nginx_is_started_again_and_never_outlives_its_node(node: Serving) -> None:
    digest, data = put(node)
    process = node.start()
    (master,) = children(process.pid)
    workers = children(master)
    os.kill(master, signal.SIGKILL)  # its workers live on, and hold the port
    until(lambda: children(process.pid) not in ([], [master]), "another nginx")

    def answer() -> bytes:
        try:
            return node.chunk(digest, SIZE).body
        except OSError:
            return b""

    until(lambda: answer() == data, "a chunk from the new nginx")
    assert "nginx has ended" in node.err
    assert not any(is_running(pid) for pid in workers)
    found = [*children(process.pid), *children(children(process.pid)[0])]
    assert len(found) >= 2
    node.stop(signal.SIGKILL)
    node.start()  # at once, while that nginx may be about to end
    until(lambda: not any(is_running(pid) for pid in found), "nginx to end with its node")
    assert node.chunk(digest, SIZE).tier == "share"
    node.stop()


def test_it_ends_at_once_where_nothing_is_under_way(node: Serving) -> None:
    process = node.start()
    idle = node.connect()
    idle.request("GET", "/healthz")
    idle.getresponse().read()
    served = [*children(process.pid), *children(children(process.pid)[0])]
    took_s = node.stop()
    assert took_s < 9, "an idle connection was waited for"
    assert not any(is_running(pid) for pid in served)
    idle.close()


@pytest.mark.parametrize("words", [(), ("--no-nginx",)])
def test_a_second_signal_ends_what_is_being_sent(node: Serving, words: tuple[str, ...]) -> None:
    digest, _ = put(node, CHUNK_BYTES)
    process = node.start(*words)
    node.chunk(digest, CHUNK_BYTES)
    with socket.create_connection(("127.0.0.1", node.port), 10) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.sendall(
            f"GET /v1/chunks/default/weights/{digest} HTTP/1.1\r\nHost: {node.address}\r\n"
            f"Authorization: Bearer {TOKEN}\r\nRange: bytes=0-{CHUNK_BYTES - 1}\r\n\r\n".encode()
        )
        slow.settimeout(30)
        assert slow.recv(4096).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)

        def is_closed() -> bool:
            try:
                socket.create_connection(("127.0.0.1", node.port), 10).close()
            except ConnectionRefusedError:
                return True
            return False

        until(is_closed, "the node to take no more")
        assert process.poll() is None, "what is under way may end"
        assert node.stop() < 9


def test_where_nginx_does_not_start_the_node_sends_itself(node: Serving) -> None:
    digest, data = put(node)
    broken = node.place / "bin"
    broken.mkdir()
    (broken / "nginx").write_text("#!/bin/sh\nexit 3\n")
    (broken / "nginx").chmod(0o755)
    node.environment["PATH"] = f"{broken}:{node.environment['PATH']}"
    node.start()
    assert node.chunk(digest, SIZE).body == data
    assert b"without nginx" in node.out
    assert "nginx does not start" in node.err
    node.stop()


# -- whom it lets in ------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("--no-nginx",)])
def test_mutual_tls_lets_in_who_has_a_certificate_of_the_clusters_ca(
    node: Serving, words: tuple[str, ...]
) -> None:
    digest, data = put(node)
    authority, stranger = trustme.CA(), trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    paths = {name: str(node.place / f"{name}.pem") for name in ("cert", "key", "ca")}
    issued.cert_chain_pems[0].write_to_path(paths["cert"])
    issued.private_key_pem.write_to_path(paths["key"])
    authority.cert_pem.write_to_path(paths["ca"])
    node.configure({"token_file": None, "tls": paths})
    node.start(*words)

    def context(by: trustme.CA | None) -> ssl.SSLContext:
        found = ssl.create_default_context(cafile=paths["ca"])
        if by is not None:
            by.issue_cert("peer.example").configure_cert(found)
        return found

    node.tls = context(authority)
    assert node.chunk(digest, SIZE).body == data
    for refused in (context(None), context(stranger)):
        node.tls = refused
        try:
            reply = node.chunk(digest, SIZE)
        except OSError:
            continue
        assert reply.status == 400, "nginx says so in HTTP"
        assert data[:64] not in reply.body
    node.tls = context(authority)
    node.stop()


def test_without_a_token_only_localhost_is_answered_by_its_name(node: Serving) -> None:
    digest, data = put(node)
    node.configure({"token_file": None})
    node.start()
    assert node.chunk(digest, SIZE, Authorization="").body == data
    assert node.chunk(digest, SIZE, Host="rebound.example").status == 403
    node.stop()


def test_a_tenant_has_only_its_own(node: Serving) -> None:
    digest, _ = put(node)  # of the tenant "default"
    node.configure(tenant="acme")
    node.start()
    assert node.chunk(digest, SIZE).status == 403
    asked = {"Range": f"bytes=0-{SIZE - 1}"}
    assert node.ask(f"/v1/chunks/acme/weights/{digest}", asked).status == 404
    node.stop()


# -- the job beside it ----------------------------------------------------------------------------


def test_a_job_is_known_by_its_lock_alone(tmp_path: Path) -> None:
    assert not is_job_here(tmp_path)
    with job_here(tmp_path), job_here(tmp_path):
        assert is_job_here(tmp_path)
    assert not is_job_here(tmp_path)
    (tmp_path / "jobs" / "left-by-a-dead-one").touch()
    assert not is_job_here(tmp_path)
    assert list((tmp_path / "jobs").iterdir()) == []


def test_serving_pauses_while_a_run_is_on(node: Serving) -> None:
    if os.geteuid() != 0:
        pytest.skip("`run` mounts, which needs root")
    digest, data = put(node)
    weights = node.place / "weights"
    weights.mkdir()
    (weights / "a").write_bytes(b"weights")
    node.configure({"while_job": "pause"})
    node.start()
    assert node.chunk(digest, SIZE).status == 200
    gate = node.place / "gate"
    os.mkfifo(gate)
    job = node.program("run", f"file://{weights}", str(node.place / "m"), "--", "cat", str(gate))
    until(lambda: node.facts["serving"]["state"] == "paused", "serving to pause")
    reply = node.chunk(digest, SIZE)
    assert reply.status == 503
    assert int(reply.headers["retry-after"]) >= 1
    # This machine's own fills get what they want: the job may be waiting for it.
    own = node.chunk(digest, SIZE, Bdnfs_Node=node.address)
    assert (own.status, own.body) == (200, data)
    gate.write_bytes(b"go")
    assert job.wait(60) == 0
    until(lambda: node.facts["serving"]["state"] == "open", "serving to go on")
    assert node.chunk(digest, SIZE).status == 200
    node.stop()


def test_serving_is_throttled_while_a_job_is_on(node: Serving) -> None:
    node.configure({"serve_rate": "400MB/s"})
    node.start()
    assert node.facts["serving"]["rate_bytes_s"] == 400_000_000
    with job_here(node.cache):
        until(lambda: node.facts["serving"]["state"] == "throttled", "serving to be throttled")
        # What sending may cost is a part of this machine's CPUs, however much it could send.
        cpus = len(os.sched_getaffinity(node.process.pid))
        assert node.facts["serving"]["rate_bytes_s"] == min(100_000_000, 64 << 20, cpus * (8 << 20))
        policies = {os.sched_getscheduler(pid) for pid in [node.process.pid, *children(node.process.pid)]}
        # Who could not take it back stays at the lowest priority all the time instead.
        assert policies == {os.SCHED_IDLE if os.geteuid() == 0 else os.SCHED_OTHER}
    until(lambda: node.facts["serving"]["rate_bytes_s"] == 400_000_000, "its rate to be as before")
    assert os.sched_getscheduler(node.process.pid) == os.SCHED_OTHER
    assert os.getpriority(os.PRIO_PROCESS, node.process.pid) >= 10
    node.stop()


def test_no_more_is_sent_than_the_rate_allows(node: Serving) -> None:
    rate, chunks = 1_000_000, 40
    digest, data = put(node)
    node.configure({"serve_rate": rate})
    node.start()
    node.chunk(digest, SIZE, Bdnfs_Node=node.address)
    replies, began = [], time.monotonic()
    threads = [
        threading.Thread(target=lambda: replies.append(node.chunk(digest, SIZE))) for _ in range(chunks)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.monotonic() - began
    sent = [reply for reply in replies if reply.status == 200]
    refused = [reply for reply in replies if reply.status == 503]
    assert len(sent) + len(refused) == chunks
    assert sent
    assert all(reply.body == data for reply in sent)
    # What a pause lets through at once, and who had its turn when the clock was looked at.
    assert len(sent) * SIZE <= rate * (took_s + 1) + 2 * SIZE
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
    node.stop()


# -- with others ----------------------------------------------------------------------------------


def test_what_another_member_has_is_not_asked_of_the_mirror(nodes: Callable[[], Serving]) -> None:
    first, second = nodes(), nodes()
    digest, data = put(first)
    members = {"members": [first.address, second.address]}
    first.configure(members)
    second.configure(members)
    first.start()
    second.start()
    assert first.chunk(digest, SIZE).tier == "mirror"
    first.mirror.object(digest).unlink()
    reply = second.chunk(digest, SIZE)
    assert (reply.status, reply.body, reply.tier) == (200, data, "peer")
    assert digest in second.kept()
    # One that lies is no harm, and is named.
    lie, truth = put(first)
    first.chunk(lie, SIZE)
    (path,) = [path for path in first.share.glob("*/*/*/*") if path.name == lie]
    found = path.stat()
    path.write_bytes(bytes(SIZE))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    reply = second.chunk(lie, SIZE)
    assert (reply.body, reply.tier) == (truth, "mirror")
    until(lambda: first.address in second.err, "a warning that names it")
    # One that is gone holds nobody up.
    first.stop()
    digest, data = put(second)
    assert second.chunk(digest, SIZE).body == data
    second.stop()


def test_members_ask_each_other_through_mutual_tls(nodes: Callable[[], Serving]) -> None:
    first, second = nodes(), nodes()
    digest, data = put(first)
    authority = trustme.CA()
    for each in (first, second):
        paths = {name: str(each.place / f"{name}.pem") for name in ("cert", "key", "ca")}
        issued = authority.issue_cert("127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(paths["cert"])
        issued.private_key_pem.write_to_path(paths["key"])
        authority.cert_pem.write_to_path(paths["ca"])
        each.configure({"members": [first.address, second.address], "token_file": None, "tls": paths})
        each.tls = ssl.create_default_context(cafile=paths["ca"])
        issued.configure_cert(each.tls)
        each.start()
    assert first.chunk(digest, SIZE).tier == "mirror"
    first.mirror.object(digest).unlink()
    reply = second.chunk(digest, SIZE)
    assert (reply.body, reply.tier) == (data, "peer")
    assert "2 members, 2 of them answer" in second.run("status")
    second.stop()
    first.stop()


def test_leases_in_redis_say_who_is_a_member(
    nodes: Callable[[], Serving], serve_redis: Callable[..., RedisServer]
) -> None:
    redis = serve_redis(user=True)
    url = f"redis://bdnfs:s3cret-Pa55@127.0.0.1:{redis.port}/0"
    first, second = nodes(), nodes()
    for each in (first, second):
        each.configure({"members": None, "redis": url, "advertise": each.address, "share": "64MiB"})
        each.start()
    both = [
        {"name": each.address, "address": each.address, "share_bytes": 64 << 20}
        for each in sorted((first, second), key=lambda each: each.address)
    ]
    until(lambda: first.facts["members"] == both == second.facts["members"], "each to know both")
    second.stop()
    until(
        lambda: [each["name"] for each in first.facts["members"]] == [first.address], "who leaves to be gone"
    )
    second.start()
    until(lambda: first.facts["members"] == both, "who comes back to be known")
    redis.kill()
    until(lambda: "the 2 members last known go on" in first.err, "the first to notice")
    assert first.facts["members"] == both
    redis.start()
    until(lambda: "answers again" in first.err, "it to heal")
    assert first.facts["members"] == both
    second.stop()
    first.stop()
    assert "s3cret" not in first.err + second.err


def test_status_shows_the_cluster(nodes: Callable[[], Serving]) -> None:
    first, second = nodes(), nodes()
    away = f"127.0.0.1:{free_port()}"
    digest, _ = put(first)
    for each in (first, second):
        each.configure({"members": [first.address, second.address, away]})
        each.start()
    second.chunk(digest, SIZE)
    second.ask("/v1/report", method="POST", body=b'{"peer": 5000000}')
    shown = first.run("status")
    assert "3 members, 2 of them answer" in shown
    assert f"{first.address} (this machine)  open, through nginx" in shown
    assert "hit rate 0.0 %" in shown
    assert "4.77 MiB from peer" in shown
    assert f"{away}  asking {away} how it is" in shown
    told = first.run("doctor")
    assert "ok  nginx: " in told
    assert "ok  cluster: default: 2 of 3 members answer" in told
    second.stop()
    first.stop()
    shown = first.run("status")
    assert "is `bdnfs node` running?" in shown
    assert BDNFS not in shown
