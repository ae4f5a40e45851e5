"""Where sources appear, and what is said of places they can't appear at. Nothing is made, nothing left."""

import subprocess
from pathlib import Path

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import TINY
from tests.commands.node import Node, until

TINY_AT_X = {"source": "hf://acme/tiny", "mount_location": "/x"}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ([{**TINY_AT_X, "source": "gopher://host/x"}], ["'gopher'", "Known: hf"]),
        ([{**TINY_AT_X, "ignore_pattern": ["*"]}], ["ignore_pattern: unknown key", "'ignore_patterns'"]),
        ([{"sauce": "hf://acme/tiny", "mount_location": "/x"}], ["sauce: unknown key", "'source'"]),
        ([TINY_AT_X, TINY_AT_X], ["'/x'", "twice", "its own directory"]),
        ([TINY_AT_X, {**TINY_AT_X, "mount_location": "/x/y"}], ["'/x/y'", "lies inside '/x'"]),
        ([{**TINY_AT_X, "mount_location": "/x/../../etc"}], ["'..'"]),
        ([{**TINY_AT_X, "mount_location": "relative"}], ["relative", "MOUNTPOINT or --root"]),
        ([{**TINY_AT_X, "mount_location": "/proc/x"}], ["/proc/x", "kernel's own"]),
        ([], ["declares nothing"]),
    ],
    ids=["scheme", "key", "first-key", "duplicate", "nested", "escaping", "relative", "kernel-tree", "empty"],
)
def test_wrong_specs_are_refused_by_name(
    node: Node, hub: HubServer, spec: list[dict[str, object]], words: list[str]
) -> None:
    node.refused(2, "mount", node.spec(*spec), says=["spec.yaml", *words])
    assert hub.requests == []
    node.clean()


def test_wrong_command_lines_are_refused(node: Node) -> None:
    node.refused(2, "mount", "hf://acme/tiny", says=["hf://acme/tiny", "MOUNTPOINT"])
    node.refused(2, "mount", "acme/tiny", node.m, says=["acme/tiny", "hf://acme/tiny"])
    node.refused(2, "mount", node.place / "none.yaml", says=["none.yaml", "no such file"])
    node.refused(
        2, "mount", "hf://acme/tiny", node.m, "--offline", "--refresh", says=["--offline", "--refresh"]
    )
    node.refused(2, "mount", "hf://acme/tiny", node.m, "--no-fill", says=["--lazy"])
    node.refused(2, "mount", "hf://acme/tiny", node.m, "--timeout", "soon", says=["soon"])
    node.refused(2, "mount", "hf://acme/tiny", node.m, "--locked", says=["--locked", "spec.lock"])
    node.refused(2, "lock", "hf://acme/tiny", says=["@revision"])
    node.refused(2, "pin", "hf://acme/tiny", says=["--until", "--off"])
    node.clean()


def test_locations_and_mountpoint_and_root(node: Node, hub: HubServer) -> None:
    outside = node.place / "outside"
    spec = node.spec(
        {"source": "hf://acme/tiny", "mount_location": "tiny"},
        {"source": "hf://acme/tiny@main", "mount_location": str(outside)},
    )
    node.run("prefetch", "hf://acme/tiny")
    done = node.run("mount", spec, node.m)
    said = [line for line in done.err.splitlines() if str(outside) in line]
    assert said == [f"bdnfs: hf://acme/tiny@main is mounted at {outside}, outside MOUNTPOINT"]
    node.holds(TINY, node.m / "tiny")
    node.holds(TINY, outside)
    node.run("unmount", outside)
    assert not outside.exists()
    node.run("unmount", node.m)
    node.clean()
    # With --root everything is below it, MOUNTPOINT too.
    root = node.m / "root"
    done = node.run("mount", spec, "/app", "--root", root)
    node.holds(TINY, root / "app" / "tiny")
    node.holds(TINY, Path(f"{root}{outside}"))
    node.run("unmount", node.m)
    node.clean()


def test_mountpoints_that_are_not_empty_or_no_directory(node: Node, hub: HubServer) -> None:
    node.m.mkdir()
    (node.m / "precious").write_text("mine")
    node.refused(8, "mount", "hf://acme/tiny", node.m, says=[str(node.m), "not empty", "'precious'"])
    assert (node.m / "precious").read_text() == "mine"
    file = node.place / "file"
    file.write_text("mine")
    node.refused(8, "mount", "hf://acme/tiny", file, says=[str(file), "is a file"])
    node.refused(8, "mount", "hf://acme/tiny", file / "below", says=[str(file)])
    dangling = node.place / "dangling"
    dangling.symlink_to("nowhere")
    node.refused(8, "mount", "hf://acme/tiny", dangling, says=[str(dangling), "nowhere"])
    assert hub.bytes_sent == 0
    (node.m / "precious").unlink()
    node.m.rmdir()
    node.clean()


def test_mountpoints_that_are_busy_or_can_not_be_made(node: Node, hub: HubServer) -> None:
    node.m.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "theirs", node.m], check=True)
    node.refused(8, "mount", "hf://acme/tiny", node.m, says=[str(node.m), "tmpfs (theirs)"])
    node.refused(8, "mount", "hf://acme/tiny", node.m / "a" / "b", says=[str(node.m / "a"), "read-only"])
    node.refused(8, "run", "hf://acme/tiny", node.m, "--", "true", says=[str(node.m), "tmpfs (theirs)"])
    # The second of two: the first is taken away again.
    first = node.place / "first"
    spec = node.spec(
        {"source": "hf://acme/tiny", "mount_location": str(first)},
        {"source": "hf://acme/tiny", "mount_location": str(node.m)},
    )
    node.refused(8, "mount", spec, says=[str(node.m), "tmpfs (theirs)"])
    assert not first.exists()
    assert hub.bytes_sent <= sum(map(len, TINY.values()))
    subprocess.run(["umount", node.m], check=True)
    node.m.rmdir()
    node.clean()


def test_an_empty_directory_of_the_users_stays_theirs(node: Node) -> None:
    node.m.mkdir()
    node.run("prefetch", "hf://acme/tiny")
    node.run("mount", "hf://acme/tiny", node.m)
    node.run("unmount", node.m)
    assert node.m.is_dir()
    node.m.rmdir()
    node.clean()


def test_shared_parents_go_with_the_last_mount_in_them(node: Node) -> None:
    node.run("prefetch", "hf://acme/tiny")
    node.run("prefetch", "hf://acme/big")
    node.run("mount", "hf://acme/tiny", node.m / "a" / "one")
    node.run("mount", "hf://acme/big", node.m / "a" / "two")
    node.run("unmount", node.m / "a" / "one")
    assert not (node.m / "a" / "one").exists()
    node.run("unmount", node.m / "a" / "two")
    node.clean()


def test_what_others_mounted_on_top_is_not_taken_away(node: Node) -> None:
    node.run("prefetch", "hf://acme/tiny")
    node.run("mount", "hf://acme/tiny", node.m)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "theirs", node.m], check=True)
    node.refused(8, "unmount", node.m, says=[str(node.m), "unmount that one first"])
    assert [mount.fstype for mount in node.mounts()][-1] == "tmpfs"
    subprocess.run(["umount", node.m], check=True)
    node.run("unmount", node.m)
    node.clean()


def test_what_others_unmounted_is_noticed(node: Node) -> None:
    """Native: there is no daemon; the next `status` tidies up."""
    node.run("mount", "hf://acme/tiny", node.m)
    subprocess.run(["umount", node.m], check=True)
    until(lambda: node.run("status", "--json").json["mounts"] == [], "status to forget it")
    node.clean()


def test_the_daemon_ends_when_others_unmount_its_last_location(node: Node, hub: HubServer) -> None:
    hub.faults.add(match="/cdn/", times=None, stall=True)
    node.configure(upstream={"stall": "1m"})
    mounting = node.start("mount", "hf://acme/big", node.m)
    until(lambda: node.shown() == "fuse", "the mount")
    reader = node.start_program("tail", "-f", node.m / "config.json")
    until(lambda: reader.out, "the reader")
    (daemon,) = node.daemons()
    subprocess.run(["umount", "-l", node.m], check=True)
    assert "unmounted by somebody else" in mounting.wait(8).error
    assert node.daemons() in ([daemon], [])
    reader.process.kill()
    until(lambda: not node.daemons(), "the daemon to end with the last open file")
    node.run("status")
    node.clean()


def test_a_lazy_daemon_lives_on_for_open_files(node: Node, hub: HubServer) -> None:
    hub.faults.add(match="/cdn/", times=None, stall=True)
    node.configure(upstream={"stall": "1m"})
    node.run("mount", "--lazy", "hf://acme/big", node.m)
    reader = node.start_program("tail", "-f", node.m / "config.json")
    until(lambda: reader.out, "the reader")
    subprocess.run(["umount", "-l", node.m], check=True)
    until(lambda: "unmounted by somebody else" in (node.status()["error"] or ""), "the daemon to notice")
    assert node.status()["state"] == "gone"
    assert node.daemons()
    reader.process.kill()
    until(lambda: not node.daemons(), "the daemon to end with the last open file")
    node.run("status")
    node.clean()


def test_what_is_mounted_stays_known_when_its_tree_is_linked_anew(node: Node) -> None:
    """The tree that is mounted goes to the trash then, and stays mounted, and is unmounted as ever."""
    node.run("mount", "hf://acme/tiny", node.m)
    (tree,) = (node.cache / "trees").iterdir()
    tree.chmod(0o755)
    (tree / "config.json").unlink()
    node.run("mount", "hf://acme/tiny", node.place / "other")
    node.holds(TINY, node.place / "other")
    (first, second) = node.run("status", "--json").json["mounts"]
    assert (first["location"], first["state"]) == (str(node.m), "whole")
    node.run("unmount", node.m)
    assert second["location"] == str(node.place / "other")
    node.run("unmount", node.place / "other")
    node.clean()
