"""One node on loopback: what it sends, over what plain nginx sends; a job's steps while it serves, over alone."""

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.hit_miss import ratio
from benchmarks.machine import machine_facts
from benchmarks.members import free_port, running_node
from benchmarks.processes import ROOT, BenchmarkError, timed
from benchmarks.workplace import BDNFS, remove_tree, serving

RATE_MIN, STEPS_MIN = 0.8, 0.99
_REPOSITORY, _LOOP = "local/serving", "benchmarks.serving.loop"
_CHUNK_BYTES = 8 << 20
_START_S = 60.0
METHOD = {
    "cpus": "the client, which stands for other machines, has the last CPU for itself; the node, nginx and the job "
    "share the others",
    "rates": "one client on loopback, two connections kept open, whole chunks of 8 MiB from the page cache, read and "
    "thrown away; alternating pairs",
    "plain": "nginx with the settings that a node writes for its own, the same files, nothing asked",
    "node": "`bdnfs node` with nginx: the node checks each request, nginx sends",
    "without_nginx": "`bdnfs node --no-nginx`: the node sends itself",
    "steps": "an MLP trained by torch on all of the job's CPUs, as the command of `bdnfs run`; alternating: a client "
    "asks the node for bytes as fast as demand says, and the same client asks for as many of an nginx on its own CPU, "
    "so that what differs is the node's work alone",
}


@dataclass(frozen=True)
class _Place:
    """paths: of the chunks, for the client; node_cpus, client_cpu: as taskset has them"""

    home: Path
    environment: dict[str, str]
    paths: Path
    node_cpus: str
    client_cpu: str

    @property
    def plain_paths(self) -> Path:
        return self.home / "plain.json"

    @property
    def files(self) -> Path:
        return self.home / "files"

    @property
    def config(self) -> Path:
        return self.home / "config.yaml"


def serve(
    directory: Path,
    *,
    pairs: int,
    seconds: float,
    size_bytes: int,
    demand_bytes: float,
    while_job: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure, and return the one JSON object; raise BenchmarkError where something fails."""
    began_s = time.monotonic()
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None:
        raise BenchmarkError("there is no nginx to compare with; run scripts/setup, or apt-get install nginx")
    if len(os.sched_getaffinity(0)) < 2:
        raise BenchmarkError("a node and its peer on one CPU would measure each other; two CPUs are needed")
    rates: dict[str, list[float]] = {"plain": [], "node": [], "without_nginx": []}
    with ExitStack() as after:
        place = after.enter_context(_open_place(directory, size_bytes, while_job, say))
        with _node(place) as url, _plain(place, nginx, place.node_cpus) as plain:
            _client(place, url, place.paths)  # everything is in its share then
            _link_files(place)
            for number in range(pairs):
                say(f"rates: {number + 1} of {pairs}")
                turns = [("plain", plain, place.plain_paths), ("node", url, place.paths)]
                for name, at, paths in turns if number % 2 else turns[::-1]:
                    rates[name].append(_rate(_client(place, at, paths, seconds)))
        with _node(place, "--no-nginx") as url:
            say("rate without nginx")
            _client(place, url, place.paths)
            rates["without_nginx"].append(_rate(_client(place, url, place.paths, seconds)))
        with _node(place) as url, _plain(place, nginx, place.client_cpu) as plain:
            steps = _steps(place, url, plain, pairs, seconds, demand_bytes, say)
    median = statistics.median
    return {
        "plain_bytes_per_s": median(rates["plain"]),
        "node_bytes_per_s": median(rates["node"]),
        "without_nginx_bytes_per_s": median(rates["without_nginx"]),
        "ratio": {
            "node_over_plain": ratio(rates["node"], rates["plain"]),
            "steps_serving_over_alone": ratio(steps["serving"], steps["alone"]),
        },
        "steps_per_s": {
            name: median(values) for name, values in steps.items() if name in ("alone", "serving")
        },
        "served_bytes_per_s": median(steps["bytes_per_s"]),
        "refused": sum(steps["refused"]),
        "while_job": while_job,
        "demand_bytes_per_s": demand_bytes,
        "pairs": pairs,
        "method": METHOD,
        "machine": machine_facts(ROOT) | {"took_s": round(time.monotonic() - began_s, 1)},
        "raw": {"rates": rates, "steps": steps},
    }


@contextmanager
def _open_place(
    directory: Path, size_bytes: int, while_job: str, say: Callable[[str], None]
) -> Iterator[_Place]:
    """Write random chunks, mirror them to a directory, and configure a node that finds them there."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="serving.", dir=directory) as top, ExitStack() as after:
        home = Path(top)
        after.callback(remove_tree, home)
        say("writing chunks, and mirroring them")
        model = home / "hub" / _REPOSITORY
        model.mkdir(parents=True)
        with (model / "model.safetensors").open("wb") as file:
            for _ in range(size_bytes // _CHUNK_BYTES):
                file.write(os.urandom(_CHUNK_BYTES))
        tiny = home / "hub" / "local" / "tiny"
        tiny.mkdir()
        (tiny / "config.json").write_text("{}\n")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "BDNFS_", "AWS_"))
        }
        hub = after.enter_context(serving("hub", [str(home / "hub")], kept))
        environment = kept | {
            "HF_ENDPOINT": hub,
            "BDNFS_CONFIG": str(home / "config.yaml"),
            "BDNFS_CACHE_DIR": str(home / "cache"),
        }
        address = f"127.0.0.1:{free_port()}"
        config = {
            "cache": {"reserve": 0},
            "mirror": str(home / "mirror"),
            "cluster": {
                "members": [address],
                "listen": address,
                "share": 2 * size_bytes,
                "while_job": while_job,
            },
        }
        (home / "config.yaml").write_text(json.dumps(config))
        spec = {"weights": [{"source": f"hf://{_REPOSITORY}", "mount_location": "/models/serving"}]}
        (home / "spec.yaml").write_text(json.dumps(spec))
        timed([*BDNFS, "mirror", str(home / "spec.yaml")], environment)
        chunks = [
            path.name
            for path in (home / "mirror").rglob("*")
            if len(path.name) == 64 and path.is_file() and path.stat().st_size == _CHUNK_BYTES
        ]
        paths = home / "paths.json"
        paths.write_text(
            json.dumps([[f"/v1/chunks/default/weights/{name}", _CHUNK_BYTES] for name in chunks])
        )
        *cpus, last = sorted(os.sched_getaffinity(0))
        yield _Place(home, environment, paths, ",".join(map(str, cpus)), str(last))


def _link_files(place: _Place) -> None:
    """Give plain nginx the chunks as files, the very ones of the node's share, and the client their paths."""
    place.files.mkdir(exist_ok=True)
    for name, _ in _chunks(place):
        found = next((place.home / "cache" / "share").rglob(name), None)
        if found is None:
            raise BenchmarkError(f"the node did not keep the chunk {name} in its share; is the disk full?")
        os.link(found, place.files / name)
    place.plain_paths.write_text(json.dumps([[f"/{name}", size] for name, size in _chunks(place)]))


def _chunks(place: _Place) -> list[tuple[str, int]]:
    return [(path.rpartition("/")[2], size) for path, size in json.loads(place.paths.read_text())]


@contextmanager
def _node(place: _Place, *words: str) -> Iterator[str]:
    log, prefix = place.home / "node.log", _on(place.node_cpus)
    with running_node(place.config, place.environment, log, *words, prefix=prefix):
        address = json.loads(place.config.read_text())["cluster"]["listen"]
        yield f"http://{address}"


@contextmanager
def _plain(place: _Place, nginx: str, cpus: str) -> Iterator[str]:
    """Run nginx alone, with what a node's own has, on these CPUs."""
    home, port = place.home / "plain", free_port()
    home.mkdir(exist_ok=True)
    user = "user root root;" if os.geteuid() == 0 else ""
    (home / "nginx.conf").write_text(
        f"{user} daemon off; worker_processes {min(4, os.cpu_count() or 1)}; pid nginx.pid; error_log error.log crit;\n"
        "events { worker_connections 512; }\n"
        "http { access_log off; sendfile on; sendfile_max_chunk 1m; tcp_nopush on; etag off; if_modified_since off;\n"
        "keepalive_requests 1000000; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;\n"
        "uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n"
        f"server {{ listen 127.0.0.1:{port}; root {place.files}; }} }}\n"
    )
    log = home / "said"
    with log.open("wb") as said:
        child = subprocess.Popen(
            [*_on(cpus), nginx, "-p", str(home), "-c", str(home / "nginx.conf"), "-e", "error.log"],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    try:
        _wait_for(lambda: _listens(port), child, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(_START_S)


def _steps(
    place: _Place,
    url: str,
    plain: str,
    pairs: int,
    seconds: float,
    demand_bytes: float,
    say: Callable[[str], None],
) -> dict[str, list[float]]:
    """Return steps per second of a job alone and while its node serves, and what was sent, period by period.

    plain: an nginx that costs the job's CPUs nothing, asked while the node is left alone
    """
    found: dict[str, list[float]] = {"alone": [], "serving": [], "bytes_per_s": [], "refused": []}
    job = subprocess.Popen(
        [*_on(place.node_cpus), *BDNFS, "run", "hf://local/tiny", str(place.home / "tiny"), "--",
         sys.executable, "-m", _LOOP],
        cwd=ROOT,
        env=place.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    seen: list[tuple[float, int]] = []
    reading = threading.Thread(target=_read_steps, args=(job, seen), daemon=True)
    reading.start()
    try:
        deadline = time.monotonic() + _START_S
        while not seen:
            if time.monotonic() > deadline or job.poll() is not None:
                job.kill()
                said = job.stderr.read() if job.stderr else ""
                raise BenchmarkError(f"the training loop did not begin; it said:\n{said}")
            time.sleep(0.05)
        got = _rate(_client(place, url, place.paths, seconds, demand_bytes))
        for number in range(pairs):
            say(f"steps: {number + 1} of {pairs}")
            for name in ("alone", "serving") if number % 2 else ("serving", "alone"):
                began_s = time.monotonic()
                if name == "serving":
                    sent = _client(place, url, place.paths, seconds, demand_bytes)
                    got = _rate(sent)
                    found["bytes_per_s"].append(got)
                    found["refused"].append(sent["refused"])
                else:
                    _client(place, plain, place.plain_paths, seconds, max(got, 1.0))
                found[name].append(_steps_per_s(seen, began_s, began_s + seconds))
    finally:
        if job.stdin is not None:
            job.stdin.close()
        try:
            job.wait(_START_S)
        except subprocess.TimeoutExpired:
            job.kill()
            job.wait()
        reading.join(_START_S)
        for stream in (job.stdout, job.stderr):
            if stream is not None:
                stream.close()
    return found


def _read_steps(job: "subprocess.Popen[str]", seen: list[tuple[float, int]]) -> None:
    assert job.stdout is not None
    for line in job.stdout:
        clock, _, steps = line.partition(" ")
        seen.append((float(clock), int(steps)))


def _steps_per_s(seen: list[tuple[float, int]], began_s: float, ended_s: float) -> float:
    within = [each for each in list(seen) if began_s <= each[0] <= ended_s]
    if len(within) < 2:
        raise BenchmarkError("the training loop stood still")
    return (within[-1][1] - within[0][1]) / (within[-1][0] - within[0][0])


def _client(
    place: _Place, url: str, paths: Path, seconds: float | None = None, demand_bytes: float | None = None
) -> dict[str, float]:
    words = [*_on(place.client_cpu), sys.executable, "-m", "benchmarks.serving.client", url, str(paths)]
    if seconds is not None:
        words += ["--seconds", str(seconds)]
    if demand_bytes is not None:
        words += ["--rate", str(demand_bytes)]
    sent: dict[str, float] = json.loads(timed(words, place.environment).output)
    return sent


def _on(cpus: str) -> list[str]:
    return ["taskset", "-c", cpus]


def _rate(sent: dict[str, float]) -> float:
    return sent["bytes"] / sent["seconds"]


def _wait_for(condition: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchmarkError(f"a server did not start; it said:\n{log.read_text()}")
        time.sleep(0.05)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def serving_table(found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    from benchmarks.report import markdown

    machine, steps, ratios = found["machine"], found["steps_per_s"], found["ratio"]
    figures = [
        ("", "plain nginx", "node with nginx", "node without"),
        (
            "sends",
            *(
                f"{found[f'{name}_bytes_per_s'] / 1e9:.2f} GB/s"
                for name in ("plain", "node", "without_nginx")
            ),
        ),
    ]
    job = [
        ("a job beside it", "alone", f"serving ({found['while_job']})"),
        ("steps per second", f"{steps['alone']:.1f}", f"{steps['serving']:.1f}"),
        ("sent meanwhile", "", f"{found['served_bytes_per_s'] / 1e6:.0f} MB/s"),
    ]
    goals = [("goal", "", "found", "reached")]
    for name, least, value in (
        ("node over plain nginx", RATE_MIN, ratios["node_over_plain"]),
        ("steps while serving over alone", STEPS_MIN, ratios["steps_serving_over_alone"]),
    ):
        goals.append((name, f">= {least:g}", f"{value:.3f}", "yes" if value >= least else "no"))
    said = (
        f"{found['pairs']} alternating pairs, medians. {machine['cpu']}, {machine['cpus']} CPUs, load average "
        f"{machine['load_average']:.1f}; bdnfs at {machine['commit']}, {machine['date']}.\n"
    )
    return "\n".join(("# One node, serving\n", said, markdown(figures), markdown(job), markdown(goals)))
