"""docs/semantics.md, "Hand-off"."""

import subprocess
import sys
from pathlib import Path

from bdnfs.fs.mounts import top_mount
from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG
from tests.commands.node import WAIT_S, Node, until
from tests.semantics.talker import Talker

MODEL = BIG["model.safetensors"]
# Looks the same file up again and again, until it is told to stop; says how often it wasn't there.
LOOKING = """
import os, sys
path, stop = sys.argv[1], sys.argv[2]
looked = missing = 0
print("looking", flush=True)
while not os.path.exists(stop):
    for _ in range(50):
        looked += 1
        missing += not os.path.exists(path)
print(looked, missing, flush=True)
"""


def fuse(node: Node, hub: HubServer) -> None:
    """Mount what fills as soon as the faults are cleared."""
    hub.faults.add(match="/cdn/", times=None, stall=True)
    node.configure(upstream={"stall": "1s", "attempts": 100})
    node.run("mount", "--lazy", "hf://acme/big", node.m)
    assert node.shown() == "fuse"


def hand_off(node: Node, hub: HubServer) -> None:
    hub.faults.clear()
    node.run("wait", node.m)
    until(lambda: node.shown() == "native", "the hand-off")


def done(node: Node) -> None:
    until(lambda: not node.daemons(), "the daemon to end with the last open file")
    node.run("unmount", node.m)
    node.clean()


def test_lookups_move_over_atomically(node: Node, hub: HubServer) -> None:
    fuse(node, hub)
    stop = node.place / "stop"
    looking = [
        node.start_program(sys.executable, "-c", LOOKING, node.m / name, stop) for name in ("config.json", "")
    ]
    for each in looking:
        until(lambda each=each: "looking" in each.out, "the lookups to begin")
    hand_off(node, hub)
    stop.touch()
    for each in looking:
        looked, missing = each.wait().out.split()[1:]
        assert int(looked) > 100
        assert int(missing) == 0
    done(node)


def test_what_is_open_stays_open(node: Node, hub: HubServer) -> None:
    fuse(node, hub)
    with Talker(node) as reader:
        reader.open(node.m / "model.safetensors")
        reader.keep("mapped", "mmap.mmap(fd, 0, prot=mmap.PROT_READ)")
        reader.keep("directory", f"os.open({str(node.m)!r}, os.O_RDONLY | os.O_DIRECTORY)")
        before = reader.ask("os.fstat(fd).st_dev")
        hand_off(node, hub)
        assert reader.ask("os.fstat(fd).st_dev") == before
        assert reader.ask("os.pread(fd, 100, 12345)") == MODEL[12345:12445].hex()
        assert reader.ask("mapped[20_000:20_100]") == MODEL[20_000:20_100].hex()
        assert reader.ask("sorted(os.listdir(directory))") == sorted(BIG)
        assert reader.ask("os.stat('config.json', dir_fd=directory).st_size") == len(BIG["config.json"])
        (daemon,) = node.daemons()
        told = node.status()
        assert (told["state"], told["daemon_pid"]) == ("whole", daemon)
        assert f"{reader.pid}" in str(told["used_by"])
        # Whoever opens it now has the native file.
        assert reader.ask(f"os.stat({str(node.m / 'model.safetensors')!r}).st_dev") != before
    done(node)


def test_a_working_directory_inside_loses_its_path(node: Node, hub: HubServer) -> None:
    fuse(node, hub)
    with Talker(node, cwd=node.m) as inside:
        assert inside.ask("os.getcwd()") == str(node.m)
        hand_off(node, hub)
        assert inside.ask("os.getcwd()") == "ENOENT"
        assert inside.ask("os.stat('config.json').st_size") == len(BIG["config.json"])
    done(node)
    # `run` never hands off.
    ran = node.run("run", "hf://acme/big", node.m, "--", "sh", "-c", f"cd {node.m}; sleep 0.2; pwd -P")
    assert ran.out == f"{node.m}\n"


def test_others_mounts_stay(node: Node, hub: HubServer) -> None:
    fuse(node, hub)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "theirs", node.m], check=True, timeout=WAIT_S)
    hub.faults.clear()
    until(lambda: not node.daemons(), "the daemon to hand off and end")
    kinds = [mount.fstype for mount in node.mounts() if mount.mountpoint == str(node.m)]
    assert len(kinds) == 2
    assert "fuse.bdnfs" not in kinds
    top = top_mount(str(node.m))
    assert top is not None
    assert top.fstype == "tmpfs"
    subprocess.run(["umount", node.m], check=True, timeout=WAIT_S)
    node.holds(BIG)
    done(node)


def test_other_namespaces(node: Node, hub: HubServer) -> None:
    ground, node.m = node.m, node.m / "models"
    ground.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "ground", ground], check=True, timeout=WAIT_S)
    subprocess.run(["mount", "--make-shared", ground], check=True, timeout=WAIT_S)
    fuse(node, hub)
    # Two containers: one has the parent with slave propagation, one a bind of the mountpoint itself.
    script = "mount --make-rslave / && mount --bind {source} {target} && echo there && read line"
    containers = []

    def container(name: str, source: Path) -> Path:
        target = node.place / name
        target.mkdir()
        command = node.start_program(
            *("unshare", "-m", "--propagation", "unchanged", "sh", "-c"),
            script.format(source=source, target=target),
            how={"stdin": subprocess.PIPE},
        )
        until(lambda: "there" in command.out, f"the container {name}; {command.err}")
        containers.append(command.process)
        return Path(f"/proc/{command.process.pid}/root{target}")

    parent = container("parent", ground)
    itself = container("itself", node.m)
    hand_off(node, hub)
    look = "{name: os.stat(path).st_dev for name, path in paths.items()}"
    with Talker(node) as reader:
        paths = {"here": str(node.m), "parent": str(parent / "models"), "itself": str(itself)}
        reader.keep("paths", repr(paths))
        devices = reader.ask(look)
        assert devices["here"] == devices["parent"] != devices["itself"]
        for path in paths.values():
            model = f"{path}/model.safetensors"
            assert reader.ask(f"open({model!r}, 'rb').read()[-100:]") == MODEL[-100:].hex()
    assert node.daemons()  # for the one that stayed on the FUSE mount
    for process in containers:
        process.kill()
        process.wait(WAIT_S)
        process.stdin.close()  # type: ignore[union-attr]
    until(lambda: not node.daemons(), "the daemon to end with the last container")
    node.run("unmount", node.m)
    subprocess.run(["umount", ground], check=True, timeout=WAIT_S)
    ground.rmdir()
    node.clean()
