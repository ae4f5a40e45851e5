"""Hosts with links of their own: network namespaces on a bridge, the bandwidth of each capped both ways.

None of it has a name that another run could meet: a namespace lasts as long as the process that holds it, which ends
with whoever made the network, however that ends; the bridge and the cables go with the namespace they are in.
"""

import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_NEWNET = 0x40000000  # Linux: include/uapi/linux/sched.h
_PREFIX = "10.77.0."
_WAIT_S = 30.0
# A whole segment of what the kernel sends at once (64 KiB and its headers) has to fit, or it is cut up at our cost.
_BURST_BYTES = 160_000
# What a switch holds for a port: less, and streams that meet there lose what they have to send again.
_QUEUE_S = 0.05
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Host:
    """One host. pid: of the process that holds its namespace; switch: of the one that holds the bridge's."""

    name: str
    address: str
    pid: int
    switch: int
    port: str

    def command(self, words: Sequence[str]) -> list[str]:
        """Return what runs these words on this host, and is killed when the thread that started it ends."""
        return ["setpriv", "--pdeathsig", "KILL", *_at(self.pid), *words]

    def inside(self, work: Callable[[], T]) -> T:
        """Call work in a thread on this host: sockets that it makes stay there, whoever uses them."""
        found: list[T] = []
        failed: list[BaseException] = []

        def enter() -> None:
            try:
                fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if _libc.setns(fd, _NEWNET):
                        raise OSError(ctypes.get_errno(), f"entering the network of {self.name}")
                finally:
                    os.close(fd)
                found.append(work())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=enter, name=f"on {self.name}")
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return found[0]

    def traffic(self) -> tuple[int, int]:
        """Return the bytes that its link has carried, frames and all: (sent, received)."""
        for line in Path(f"/proc/{self.pid}/net/dev").read_text().splitlines():
            name, _, counted = line.partition(":")
            if name.strip() == "eth0":
                fields = counted.split()
                return int(fields[8]), int(fields[0])
        raise OSError(f"{self.name} has no eth0")

    def cap(self, rate_bits: int) -> None:
        """Give its link, which has none yet, a bandwidth, each way: bits per second."""
        for pid, device in ((self.switch, self.port), (self.pid, "eth0")):
            _cap(pid, device, rate_bits)

    def uncap(self) -> None:
        """Take the bandwidth's cap away."""
        for pid, device in ((self.switch, self.port), (self.pid, "eth0")):
            _run([*_at(pid), *f"tc qdisc del dev {device} root".split()], "")

    def cut(self) -> None:
        """Pull its cable out; what is on the way is lost, and nobody is told."""
        _ip(self.switch, [f"link set {self.port} down"])

    def heal(self) -> None:
        _ip(self.switch, [f"link set {self.port} up"])


@dataclass
class Network:
    """A bridge, and the hosts on it by their names."""

    switch: int
    rate_bits: int | None
    mtu: int
    after: ExitStack
    hosts: dict[str, Host] = field(default_factory=dict)

    def add(self, name: str, rate_bits: int | None = None) -> Host:
        """Connect one more host, by a link of rate_bits per second (None: as the network's)."""
        rate_bits = rate_bits or self.rate_bits
        number = len(self.hosts) + 1
        host = Host(name, f"{_PREFIX}{number}", _hold(self.after), self.switch, f"port{number}")
        _ip(
            self.switch,
            [
                f"link add {host.port} mtu {self.mtu} type veth peer name eth0 mtu {self.mtu} netns {host.pid}",
                f"link set {host.port} master bridge up",
            ],
        )
        _ip(host.pid, ["link set lo up", f"addr add {host.address}/24 dev eth0", "link set eth0 up"])
        if rate_bits:
            host.cap(rate_bits)
        self.hosts[name] = host
        return host


@contextmanager
def open_network(
    names: Sequence[str] = (), rate_bits: int | None = None, mtu: int = 1500
) -> Iterator[Network]:
    """Yield a network of these hosts, gone at the end with all that still runs on it.

    rate_bits: bits per second of each host's link, each way; None: what the machine can
    Raises OSError where this user, or this kernel, can't make one.
    """
    with ExitStack() as after:
        switch = _hold(after)
        _ip(switch, [f"link add bridge mtu {mtu} type bridge", "link set bridge up", "link set lo up"])
        network = Network(switch, rate_bits, mtu, after)
        for name in names:
            network.add(name)
        yield network


def _hold(after: ExitStack) -> int:
    """Make a namespace; return the pid of what holds it until `after` closes, or this process ends."""
    holder = subprocess.Popen(
        ["unshare", "--net", "--", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    after.callback(_let_go, holder)
    assert holder.stdout is not None
    assert holder.stderr is not None
    if holder.stdout.readline() != b"\n":
        raise OSError(f"making a network namespace: {holder.stderr.read().decode().strip()}; it needs root")
    return holder.pid


def _let_go(holder: "subprocess.Popen[bytes]") -> None:
    """End what still runs in the namespace, then what holds it."""
    mine = os.stat(f"/proc/{holder.pid}/ns/net").st_ino
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != holder.pid:
            try:
                if os.stat(entry / "ns/net").st_ino == mine:
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stderr is not None
    for stream in (holder.stdin, holder.stdout, holder.stderr):
        stream.close()
    holder.wait(_WAIT_S)


def _cap(pid: int, device: str, rate_bits: int) -> None:
    # Of a burst that is too short for the rate, the kernel's clock would make a lower one.
    burst = max(_BURST_BYTES, rate_bits // 8 // 500)
    queue = burst + int(rate_bits / 8 * _QUEUE_S)
    words = f"qdisc add dev {device} root tbf rate {rate_bits}bit burst {burst} limit {queue}"
    _run([*_at(pid), "tc", *words.split()], "")


def _ip(pid: int, lines: Sequence[str]) -> None:
    _run([*_at(pid), "ip", "-batch", "-"], "\n".join(lines) + "\n")


def _at(pid: int) -> list[str]:
    return ["nsenter", f"--net=/proc/{pid}/ns/net", "--"]


def _run(words: Sequence[str], told: str) -> None:
    done = subprocess.run(words, input=told, capture_output=True, text=True, check=False, timeout=_WAIT_S)
    if done.returncode:
        raise OSError(f"{' '.join(words)} ({told.strip()}): {(done.stderr or done.stdout).strip()}")
