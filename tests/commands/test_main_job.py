"""What a user gets: each command of the main job, as it is meant to be used."""

import json
import sys
from pathlib import Path

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES, TINY
from tests.commands.node import TOKEN, Node, until

TINY_BYTES = sum(map(len, TINY.values()))


def test_one_source_stands_whole_and_native_and_goes_again(node: Node, hub: HubServer) -> None:
    deep = node.m / "app" / "models"
    assert node.exec("mount", "hf://acme/big", deep).out == ""
    assert node.shown(deep) == "native"
    node.holds(BIG, deep)
    assert hub.bytes_sent == BIG_BYTES
    until(lambda: not node.daemons(), "the daemon to end: nobody has a file open")
    node.run("unmount", deep)
    node.clean()
    assert node.exec("mount", "hf://acme/big", deep).err == ""  # a hit shows no progress
    node.holds(BIG, deep)
    assert hub.bytes_sent == BIG_BYTES
    node.run("unmount", node.m)  # what is below it, too
    node.clean()


def test_spec_file_mounts_each_source_at_its_place(node: Node) -> None:
    spec = node.spec(
        {"source": "hf://acme/tiny@main", "mount_location": "models/tiny"},
        {"source": "hf://acme/big", "mount_location": "models/big", "allow_patterns": ["*.json"]},
    )
    node.run("mount", spec, node.m)
    node.holds(TINY, node.m / "models/tiny")
    node.holds({"config.json": BIG["config.json"]}, node.m / "models/big")
    node.run("unmount", node.m)
    node.clean()


def test_run_binds_for_the_command_alone_and_has_its_exit_code(node: Node) -> None:
    code = f"""
import os, sys
assert sorted(os.listdir({str(node.m)!r})) == {sorted(TINY)!r}
assert open({str(node.m)!r} + "/config.json", "rb").read() == {TINY["config.json"]!r}
print("ran", sys.argv[1:])
sys.exit(3)
"""
    done = node.exec(
        "run", "hf://acme/tiny", node.m, "--", sys.executable, "-c", code, "--json", "--", code=3
    )
    assert done.out == "ran ['--json', '--']\n"
    node.clean()
    assert node.run("run", "hf://acme/tiny", node.m, "--", "sh", "-c", "kill -USR1 $$", code=138).err == ""
    node.refused(127, "run", "hf://acme/tiny", node.m, "--", "no-such-command", says=["no-such-command"])
    node.refused(
        126,
        "run",
        "hf://acme/tiny",
        node.m,
        "--",
        "/etc/hostname",
        says=["/etc/hostname", "Exec format error"],
    )
    node.refused(2, "run", "hf://acme/tiny", node.m, says=["after --"])
    node.clean()


def test_run_never_meets_fuse(node: Node) -> None:
    done = node.run("run", "hf://acme/tiny", node.m, "--", "grep", str(node.m), "/proc/self/mountinfo")
    (line,) = done.out.splitlines()
    assert "fuse" not in line
    assert " ro," in line


def test_prefetch_fills_and_mounts_nothing(node: Node, hub: HubServer) -> None:
    commit = hub.repository("acme/tiny").branches["main"]
    done = node.run("prefetch", "hf://acme/tiny")
    assert done.out == f"hf://acme/tiny@{commit} is whole\n"
    assert not node.mounts()
    spec = node.spec({"source": "hf://acme/tiny", "mount_location": "relative/needs/no/mountpoint"})
    node.run("prefetch", spec)
    assert hub.bytes_sent == TINY_BYTES


def test_plan_says_what_would_come_and_writes_nothing(node: Node, hub: HubServer) -> None:
    spec = node.spec({"source": "hf://acme/big", "mount_location": "big"})
    (planned,) = node.run("plan", spec, "--json").json["sources"]
    assert planned["source"] == "hf://acme/big"
    assert planned["revision"] == hub.repository("acme/big").branches["main"]
    assert planned["files"] == len(BIG)
    assert planned["total_bytes"] == BIG_BYTES
    assert planned["present_bytes"] == 0
    assert planned["tier_bytes"] == {"origin": BIG_BYTES}
    assert planned["seconds"] > 0
    assert planned["location"] == "big"
    assert not node.cache.exists()
    node.run("prefetch", "hf://acme/big")
    (planned,) = node.run("plan", spec, "--json").json["sources"]
    assert (planned["present_bytes"], planned["tier_bytes"], planned["seconds"]) == (BIG_BYTES, {}, 0)
    said = node.run("plan", "hf://acme/tiny").out
    assert "from origin: 68.4 KiB" in said
    assert "hf://acme/tiny" in said


def test_stage_makes_plain_directories(node: Node) -> None:
    staged = node.place / "staged" / "tiny"
    done = node.run("stage", "hf://acme/tiny", staged)
    assert str(staged) in done.out
    assert not node.mounts()
    node.holds(TINY, staged)
    if (staged / "config.json").is_symlink():
        assert "root can write through them" in done.err
        (held,) = node.run("cache", "ls", "--json").json
        assert held["pinned"]
    node.refused(8, "stage", "hf://acme/tiny", staged, says=[str(staged), "not empty"])


def test_status_says_what_is_mounted_and_where_the_log_is(node: Node, hub: HubServer) -> None:
    assert node.run("status").out.startswith("nothing is mounted")
    assert node.run("status", "--json").json == {"mounts": [], "cleared": [], "cache": None}
    node.run("mount", "hf://acme/tiny", node.m)
    told = node.status()
    commit = hub.repository("acme/tiny").branches["main"]
    assert (told["location"], told["source"], told["revision"]) == (str(node.m), "hf://acme/tiny", commit)
    assert (told["kind"], told["state"]) == ("native", "whole")
    assert Path(told["log"]).is_file()
    said = node.run("status").out
    assert f"{node.m}  whole, native\n    hf://acme/tiny at {commit[:12]}\n" in said
    assert told["log"] in said
    assert f"cache: {node.cache}, 68.4 KiB present" in said


def test_status_names_who_uses_a_mount_and_unmount_refuses(node: Node) -> None:
    node.run("prefetch", "hf://acme/tiny")
    node.run("mount", "hf://acme/tiny", node.m)
    reader = node.start_program("tail", "-f", node.m / "config.json")
    pid = reader.process.pid
    until(lambda: reader.out, "the reader")
    assert node.status()["used_by"] == [f"tail (pid {pid})"]
    assert f"used by tail (pid {pid})" in node.run("status").out
    node.refused(8, "unmount", node.m, says=[str(node.m), f"tail (pid {pid})", "--force"])
    assert node.shown() == "native"
    node.run("unmount", "--force", node.m)
    node.clean()


def test_unmount_and_wait_of_nothing(node: Node) -> None:
    node.refused(8, "unmount", node.m, says=[str(node.m), "nothing of bdnfs is mounted", "bdnfs status"])
    node.refused(8, "wait", node.m, says=[str(node.m), "nothing of bdnfs is mounted", "bdnfs status"])


def test_mounting_what_is_mounted_already_is_done_at_once(node: Node, hub: HubServer) -> None:
    node.run("prefetch", "hf://acme/tiny")
    node.run("mount", "hf://acme/tiny", node.m)
    assert node.run("mount", "hf://acme/tiny", node.m).err == ""
    node.run("wait", node.m, "--timeout", "1s")
    assert len(node.mounts()) == 1
    node.refused(8, "mount", "hf://acme/big", node.m, says=["hf://acme/tiny@", "bdnfs unmount"])
    node.run("mount", "hf://acme/tiny", node.place / "m2")
    assert hub.bytes_sent == TINY_BYTES
    node.run("unmount", node.place / "m2")
    node.run("unmount", node.m)
    node.clean()


def test_doctor_says_what_the_machine_can_do(node: Node) -> None:
    found = {item["name"]: item for item in node.run("doctor", "--json").json}
    assert {"fuse device", "mounting", "hand-off", "user namespaces", "read-ahead"} <= set(found)
    assert set(found["mounting"]) == {"name", "ok", "detail", "remedy"}
    assert found["mounting"]["ok"]
    assert "mounting: " in node.run("doctor").out


def test_python_dash_m_and_the_list_of_commands(node: Node) -> None:
    done = node.start_program(sys.executable, "-m", "bdnfs", "--help", how={"cwd": "/"}).wait()
    for name in (
        "mount",
        "unmount",
        "wait",
        "status",
        "run",
        "prefetch",
        "stage",
        "plan",
        "lock",
        "pin",
        "cache",
    ):
        assert f"\n  {name} " in done.out
    assert "did you mean 'unmount'" in node.run("umount", code=2).err
    assert node.run("mount", code=2).err.startswith("Usage: bdnfs mount")


def test_sizes_are_read_and_written_with_their_units(node: Node) -> None:
    node.configure(cache={"capacity": "1.5TiB", "reserve": "1GiB"})
    assert "capacity 1.5 TiB" in node.run("cache", "du").out
    assert node.run("cache", "du", "--json").json["capacity_bytes"] == 3 << 39
    node.configure(cache={"capacity": "a lot"})
    node.refused(2, "cache", "du", says=["cache.capacity", "1.5TiB"])


def test_a_wrong_config_is_named(node: Node) -> None:
    node.configure(cache={"capacty": "1TiB"})
    node.refused(2, "status", says=["cache.capacty", "capacity"])


def test_gated_with_the_right_token_mounts(node: Node) -> None:
    node.run("mount", "hf://acme/gated", node.m, HF_TOKEN=TOKEN)
    node.holds(TINY)


def test_json_keys_are_stable(node: Node) -> None:
    node.run("prefetch", "hf://acme/tiny")
    node.run("mount", "hf://acme/tiny", node.m)
    status = node.run("status", "--json").json
    assert set(status) == {"mounts", "cleared", "cache"}
    assert set(status["mounts"][0]) == {
        "location", "source", "revision", "kind", "state", "present_bytes", "total_bytes", "daemon_pid",
        "log", "error", "used_by",
    }  # fmt: skip
    du = {"directory", "present_bytes", "charged_bytes", "capacity_bytes", "disk_free_bytes", "reserve_bytes"}
    assert set(status["cache"]) == du
    assert set(node.run("cache", "du", "--json").json) == du
    (planned,) = node.run("plan", "hf://acme/tiny", "--json").json["sources"]
    assert set(planned) == {
        "source", "revision", "location", "files", "total_bytes", "present_bytes", "tier_bytes", "seconds",
    }  # fmt: skip
    (held,) = node.run("cache", "ls", "--json").json
    assert set(held) == {
        "snapshot_id", "source", "revision", "files", "bytes", "whole", "used_s", "created_s", "pinned",
        "tenant",
    }  # fmt: skip
    assert json.dumps(held)
