"""The hosts of these tests: apart from each other and from this machine, and gone however a test ends."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cluster.network import Network, open_network
from tests.commands.node import ROOT, until

HOLDS = """
import subprocess, sys, time
from pathlib import Path
from benchmarks.cluster.network import open_network
with open_network(["one", "two"]) as network:
    one = network.hosts["one"]
    sleeps = subprocess.Popen(one.command(["sleep", "1000"]))
    while Path(f"/proc/{sleeps.pid}/comm").read_text() != "sleep\\n":  # it asks to die with us on its way there
        time.sleep(0.01)
    print(network.switch, *(host.pid for host in network.hosts.values()), sleeps.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def network() -> Iterator[Network]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with open_network(["one", "two"]) as opened:
        yield opened


def test_hosts_reach_each_other_until_a_cable_is_pulled(network: Network) -> None:
    one, two = network.hosts.values()
    listening = two.inside(lambda: socket.create_server((two.address, 7000)))
    with listening:
        there = one.inside(lambda: socket.create_connection((two.address, 7000), 10))
        here, _ = listening.accept()
        with there, here:
            there.settimeout(30)
            here.sendall(bytes(100_000))
            assert _received(there, 100_000)
            before = one.traffic()[1]
            two.cut()
            here.sendall(bytes(1000))
            assert one.traffic()[1] - before < 1000
            two.heal()
            assert _received(there, 1000)  # TCP sends again what was lost


def test_all_is_gone_when_whoever_made_it_is_killed() -> None:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    made = subprocess.Popen(
        [sys.executable, "-c", HOLDS], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with made:
        assert made.stdout is not None
        pids = [int(pid) for pid in made.stdout.readline().split()]
        assert len(pids) == 4
        made.send_signal(signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}/ns/net").exists() for pid in pids), "all of it to be gone")


def _received(connection: socket.socket, size: int) -> bool:
    while size > 0:
        size -= len(connection.recv(65536))
    return size == 0
