"""Two servers of buckets, one with a model and one empty, and what bdnfs and rclone are told of them."""

import json
import os
import resource
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import timed
from benchmarks.workplace import Workplace, serving

_SOURCE = "s3://weights/model"
_SECRET = "mirror_keys"
_MEMORY = Path("/dev/shm")
_KEYS = {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "hidden-key", "aws_region": "us-east-1"}


@dataclass(frozen=True)
class BucketsServer:
    """One of the two servers of buckets."""

    url: str

    def stats(self) -> dict[str, float]:
        """Return bytes_sent and bytes_received of content, and cpu_s, so far."""
        found: dict[str, float] = json.loads(self._ask("GET", "_stats"))
        return found

    def empty(self, bucket: str) -> None:
        """Make the bucket anew."""
        self._ask("DELETE", bucket)
        self._ask("PUT", bucket)

    def _ask(self, method: str, path: str) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(f"{self.url}/{path}", method=method)
        with opener.open(request, timeout=60) as answer:
            return bytes(answer.read())


@dataclass(frozen=True)
class Place:
    """A model below s3://weights/model of the server upstream, a bucket `mirror` and one `copy` of the other."""

    workplace: Workplace
    environment: dict[str, str]
    upstream: BucketsServer
    mirror: BucketsServer
    spec: Path

    def bdnfs(self, *words: str | Path) -> list[str]:
        return self.workplace.bdnfs("mirror", *words, "--config", self.spec.with_name("config.yaml"))

    def measured(self, command: list[str]) -> "Measured":
        before = self.upstream.stats(), self.mirror.stats()
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = timed(command, self.environment)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        after = self.upstream.stats(), self.mirror.stats()
        return Measured(
            ended.seconds,
            [
                usage.ru_utime + usage.ru_stime - began.ru_utime - began.ru_stime,
                *(now["cpu_s"] - then["cpu_s"] for now, then in zip(after, before, strict=True)),
            ],
            ended.peak_rss_bytes,
            int(after[0]["bytes_sent"] - before[0]["bytes_sent"]),
            int(after[1]["bytes_received"] - before[1]["bytes_received"]),
        )


@dataclass(frozen=True)
class Measured:
    """A process: what left the upstream's server meanwhile, and what came to the mirror's, in bytes."""

    seconds: float
    cpu_s: list[float]
    peak_rss_bytes: int
    upstream_bytes: int
    mirror_bytes: int


@contextmanager
def open_place(workplace: Workplace, store: Path) -> Iterator[Place]:
    home = workplace.home
    bucket = home / "upstream" / "weights"
    bucket.mkdir(parents=True)
    (bucket / "model").symlink_to(workplace.model)
    with (
        serving("buckets", [str(home / "upstream")], workplace.environment) as upstream,
        serving("buckets", [str(store), "--fresh"], workplace.environment) as target,
    ):
        secrets = home / "secrets"
        secrets.mkdir(mode=0o700)
        (secrets / _SECRET).touch(mode=0o600)
        (secrets / _SECRET).write_text(json.dumps({**_KEYS, "aws_endpoint_url": target}))
        # Both are JSON, which is YAML.
        mirror = {"url": "s3://mirror", "auth_secret_name": _SECRET}
        config = {"mirror": mirror, "secrets": {"directory": str(secrets)}}
        (home / "config.yaml").write_text(json.dumps(config))
        spec = home / "mirrored.yaml"
        spec.write_text(json.dumps({"weights": [{"source": _SOURCE, "mount_location": "/models/random"}]}))
        environment = _environment(workplace.environment, upstream, target)
        yield Place(workplace, environment, BucketsServer(upstream), BucketsServer(target), spec)


def _environment(environment: dict[str, str], upstream: str, target: str) -> dict[str, str]:
    kept = {name: value for name, value in environment.items() if not name.startswith(("AWS_", "RCLONE_"))}
    for name, url in (("UPSTREAM", upstream), ("MIRROR", target)):
        settings = {"TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": url, "REGION": _KEYS["aws_region"]}
        settings["ACCESS_KEY_ID"] = _KEYS["aws_access_key_id"]
        settings["SECRET_ACCESS_KEY"] = _KEYS["aws_secret_access_key"]
        kept |= {f"RCLONE_CONFIG_{name}_{setting}": value for setting, value in settings.items()}
    return kept | {"AWS_ENDPOINT_URL": upstream} | {name.upper(): value for name, value in _KEYS.items()}


def chosen_store(home: Path, size_bytes: int) -> Path:
    """Return where the mirror's server stores: in memory if that has room, for disks are slower than servers."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    if _MEMORY.is_dir() and min(memory, shutil.disk_usage(_MEMORY).free) > 2 * size_bytes + 10**9:
        return _MEMORY
    return home


def own_rates(place: Place) -> dict[str, float]:
    """Return what the servers give and take in a plain loop of 8 MiB requests on one connection."""
    place.mirror.empty("copy")
    command = [sys.executable, "-m", "benchmarks.servers.probe", place.upstream.url, place.mirror.url]
    found: dict[str, float] = json.loads(timed(command, place.environment).output)
    return found
