"""A secret is used, and shown nowhere: not in output, logs, records, argv, mount tables or the cache."""

import subprocess
from pathlib import Path

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, TINY
from tests.commands.node import TOKEN, Node, until


def everywhere(node: Node) -> str:
    """What others can see: every process's argv, the mount table, what the node's files hold."""
    seen = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    seen += Path("/proc/self/mountinfo").read_text()
    node.no_secret_in_files()
    return seen


def test_token_from_the_environment(node: Node, hub: HubServer) -> None:
    hub.commit("acme/gated", BIG)
    hub.repository("acme/gated").gated = True
    hub.faults.add(match="/cdn/", times=None, slow_bytes_per_s=20e6)
    mounting = node.start("mount", "hf://acme/gated", node.m, HF_TOKEN=TOKEN)
    until(lambda: node.shown() == "fuse", "the mount")
    assert TOKEN not in everywhere(node)
    mounting.wait()
    assert TOKEN not in everywhere(node)
    assert TOKEN not in node.run("status", HF_TOKEN=TOKEN).out
    node.run("plan", "hf://acme/gated", HF_TOKEN=TOKEN)
    assert hub.stray_authorizations == []
    node.run("unmount", node.m)


def test_token_from_a_secret_file_and_faults_on_the_way(node: Node, hub: HubServer) -> None:
    secrets = node.home / "secrets"
    secrets.mkdir()
    (secrets / "mine").write_text(TOKEN)
    node.configure(secrets={"directory": str(secrets)}, upstream={"attempts": 2})
    spec = node.spec({"source": "hf://acme/gated", "mount_location": str(node.m), "auth_secret_name": "mine"})
    faults = (({"status": 403}, 3), ({"status": 500}, 5), ({"wrong_bytes": True}, 6), ({"reset": True}, 5))
    for fault, code in faults:
        hub.faults.clear()
        hub.faults.add(match="/cdn/", times=None, **fault)
        done = node.run("prefetch", spec, code=code)
        assert "Signature" not in done.err
        assert "Expires" not in done.err
    hub.faults.clear()
    node.run("mount", "--lazy", spec)
    assert TOKEN not in everywhere(node)
    node.run("wait", node.m)
    node.holds(TINY)
    node.run("unmount", node.m)
    node.clean()


def test_passwords_and_signatures_in_sources_are_not_shown(node: Node) -> None:
    done = node.run("mount", "https://me:hunter2@localhost:1/file?X-Amz-Signature=abcdef", node.m, code=None)
    assert done.code in (2, 5)
    assert "hunter2" not in done.err
    assert "abcdef" not in done.err
    node.clean()
