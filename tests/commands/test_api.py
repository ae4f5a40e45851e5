"""`import bdnfs`: the same from Python."""

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG_BYTES
from tests.commands.node import Node, until

MOUNTS = """
import os, sys, threading
import bdnfs

ended = threading.Event()
beside = threading.Thread(target=ended.wait)  # a process has others' threads, too
beside.start()
try:
    with bdnfs.mount("hf://acme/tiny", sys.argv[1]) as m:
        assert m.path == sys.argv[1] and sorted(os.listdir(m.path)) == ["config.json", "empty.txt", "model.safetensors"]
        (source,) = m.sources
        assert (source.source, len(source.revision), source.path) == ("hf://acme/tiny", 40, sys.argv[1])
        with bdnfs.mount("hf://acme/tiny", sys.argv[1]) as again:  # what stood before stays
            assert again.path == m.path
        assert os.listdir(m.path)
    assert not os.path.exists(sys.argv[1]) or not os.listdir(sys.argv[1])

    found = []
    def work():
        with bdnfs.mount("hf://acme/big", sys.argv[1], lazy=True) as m:
            m.wait(timeout_s=60)
            found.append(os.path.getsize(m.path + "/model.safetensors"))
    other = threading.Thread(target=work)
    other.start()
    other.join()
    assert found and found[0] > 2 << 23, found
    # Another test's namespace may have a copy of the mount, and then its directory stays for a while.
    assert not os.path.exists(sys.argv[1]) or not os.listdir(sys.argv[1])

    (tree,) = bdnfs.prefetch("hf://acme/tiny")
    assert sorted(os.listdir(tree)) == ["config.json", "empty.txt", "model.safetensors"]
    (planned,) = bdnfs.plan("hf://acme/big")
    assert planned.tier_bytes == {} and planned.total_bytes == planned.present_bytes
    m = bdnfs.mount("hf://acme/tiny", sys.argv[1])
    m.unmount()
    bdnfs.mount("hf://acme/tiny", sys.argv[1])
    assert bdnfs.unmount(sys.argv[1]) == [sys.argv[1]]
    for words, kind in (
        (("hf://acme/none", sys.argv[1]), bdnfs.NotFoundError),
        (("hf://acme/gated", sys.argv[1]), bdnfs.CredentialsError),
        (("hf://acme/tiny",), bdnfs.SpecError),
        (("hf://acme/tiny", "/proc/x"), bdnfs.SpecError),
    ):
        try:
            bdnfs.mount(*words)
        except kind as error:
            assert isinstance(error, bdnfs.BdnfsError)
        else:
            raise AssertionError(words)
finally:
    ended.set()
print("done")
"""


def test_mount_wait_prefetch_plan_unmount_and_errors(node: Node, hub: HubServer) -> None:
    # As a program of its user: with warnings as errors, so that nothing is left open.
    command = node.start_program("python", "-W", "error", "-c", MOUNTS, node.m)
    assert command.wait().out == "done\n"
    assert hub.bytes_sent < 1.1 * BIG_BYTES
    node.clean()


def test_an_exception_inside_with_unmounts(node: Node) -> None:
    code = """
import sys, bdnfs
try:
    with bdnfs.mount("hf://acme/tiny", sys.argv[1]):
        raise ValueError("mine")
except ValueError as error:
    print(error)
"""
    assert node.start_program("python", "-c", code, node.m).wait().out == "mine\n"
    node.clean()


@pytest.mark.parametrize("lazy", [False, True])
def test_upstream_down_is_a_warning(node: Node, hub: HubServer, lazy: bool) -> None:
    node.run("prefetch", "hf://acme/tiny")
    hub.stop()
    code = f"""
import pathlib, sys, warnings, bdnfs
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with bdnfs.mount("hf://acme/tiny", sys.argv[1], lazy={lazy}):
        print(pathlib.Path(sys.argv[1], "config.json").read_text())
(warning,) = caught
assert "hf://acme/tiny" in str(warning.message)
"""
    assert "architectures" in node.start_program("python", "-c", code, node.m).wait().out
    node.clean()


def test_killed_program_leaves_a_mount_that_the_command_takes_away(node: Node) -> None:
    code = """
import sys, time, bdnfs
with bdnfs.mount("hf://acme/tiny", sys.argv[1]):
    print("mounted", flush=True)
    time.sleep(600)
"""
    program = node.start_program("python", "-c", code, node.m)
    until(lambda: program.out, "the mount")
    program.process.kill()
    program.wait(-9)
    assert node.shown() == "native"
    node.run("unmount", node.m)
    node.clean()
