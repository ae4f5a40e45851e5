"""A real Redis of one's own, which can be killed, stopped and started again."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import trustme

from bdnfs.spec.cluster import RedisConfig
from bdnfs.spec.secret import Secret
from tests.contract.servers import free_port

HOST = "127.0.0.1"
DEADLINE_S = 60.0
# Its own rights are what docs tell operators to give.
USER, PASSWORD = "bdnfs", "s3cret-Pa55"
RIGHTS = (
    "resetkeys ~bdnfs:* resetchannels -@all +eval +time +get +set +pexpire "
    "+hget +hset +hdel +hlen +hkeys +hexists +hgetall +zadd +zrem +zcard +zscore +zrange +zrangebyscore"
)


class RedisServer:
    """redis-server on a free port, without persistence: what it knew is gone when it is killed."""

    def __init__(self, directory: Path, *, user: bool = False, tls: bool = False) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port, self._directory = free_port(), directory
        self._child: subprocess.Popen[bytes] | None = None
        plain, encrypted = (0, self.port) if tls else (self.port, 0)
        self._lines = [
            f"bind {HOST}",
            f"port {plain}",
            f"tls-port {encrypted}",
            f"dir {directory}",
            'save ""',
            "appendonly no",
            f"logfile {directory / 'log'}",
        ]
        if user:
            self._lines += [f"user {USER} on >{PASSWORD} {RIGHTS}", "user default off"]
        self.ca: str | None = None
        if tls:
            authority = trustme.CA()
            authority.cert_pem.write_to_path(directory / "ca.pem")
            issued = authority.issue_cert(HOST)
            issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
            issued.private_key_pem.write_to_path(directory / "key.pem")
            self.ca = str(directory / "ca.pem")
            self._lines += [
                f"tls-cert-file {directory / 'cert.pem'}",
                f"tls-key-file {directory / 'key.pem'}",
                "tls-auth-clients no",
            ]
        self.config = RedisConfig(
            HOST,
            self.port,
            tls,
            username=USER if user else None,
            password=Secret(PASSWORD) if user else None,
            ca=self.ca,
        )
        self.start()

    def start(self) -> None:
        # By stdin: a password in argv is everyone's.
        self._child = subprocess.Popen(
            ["redis-server", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        assert self._child.stdin is not None
        self._child.stdin.write("\n".join(self._lines).encode() + b"\n")
        self._child.stdin.close()
        log = self._directory / "log"
        before = log.read_text().count("Ready to accept") if log.exists() else 0
        until(lambda: log.exists() and log.read_text().count("Ready to accept") > before)

    def signal(self, number: int) -> None:
        assert self._child is not None
        self._child.send_signal(number)

    def kill(self) -> None:
        if self._child is not None:
            self._child.send_signal(signal.SIGCONT)
            self._child.kill()
            self._child.wait()
        self._child = None


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.02)
