"""What upstream does wrong: a clear error with its exit code, nothing lost, nothing left behind."""

import time

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES, CHUNK, TINY
from tests.commands.node import TOKEN, Node, until


def entry(path: str, size: int = 7) -> dict[str, object]:
    return {"type": "file", "oid": "0" * 40, "size": size, "path": path}


# ---- what is asked for is not there, or not for everyone --------------------------------------


def test_missing_repository(node: Node) -> None:
    node.refused(5, "mount", "hf://acme/none", node.m, says=["hf://acme/none", "spelling", "HF_TOKEN"])
    node.clean()


def test_bad_revision(node: Node) -> None:
    node.refused(
        5, "mount", "hf://acme/tiny@nope", node.m, says=["hf://acme/tiny", "'nope'", "branch, tag or commit"]
    )
    node.refused(5, "mount", f"hf://acme/tiny@{'0' * 40}", node.m, says=["hf://acme/tiny", "0" * 40])
    node.clean()


def test_gated_without_a_token_says_which_and_where(node: Node, hub: HubServer) -> None:
    for words in (["mount", "hf://acme/gated", node.m], ["prefetch", "hf://acme/gated"]):
        node.refused(
            3, *words, says=["hf://acme/gated", "no token was given", f"{hub.url}/acme/gated", "HF_TOKEN"]
        )
    assert hub.bytes_sent == 0
    node.clean()


def test_gated_with_a_token_whose_account_has_not_accepted(node: Node, hub: HubServer) -> None:
    hub.token("hf_other")
    said = node.refused(
        3, "mount", "hf://acme/gated", node.m, HF_TOKEN="hf_other",
        says=["hf://acme/gated", "accept its licence", f"{hub.url}/acme/gated"],
    )  # fmt: skip
    assert "hf_other" not in said
    node.clean()


def test_unknown_token(node: Node, hub: HubServer) -> None:
    said = node.refused(
        3, "mount", "hf://acme/tiny", node.m, HF_TOKEN="hf_unknown", says=["token", "HF_TOKEN"]
    )
    assert "hf_unknown" not in said
    node.clean()


def test_secret_from_a_file_named_by_the_spec(node: Node, hub: HubServer) -> None:
    secrets = node.home / "secrets"
    secrets.mkdir()
    node.configure(secrets={"directory": str(secrets)})
    spec = node.spec({"source": "hf://acme/gated", "mount_location": str(node.m), "auth_secret_name": "mine"})
    node.refused(3, "mount", spec, says=["'mine'", str(secrets / "mine")])
    (secrets / "mine").write_text(f"{TOKEN}\n")
    node.run("mount", spec)
    node.holds(TINY)
    assert hub.stray_authorizations == []
    node.run("unmount", node.m)
    hub.repository("acme/gated").gated = True
    hub.tokens.clear()
    node.run("cache", "evict")
    node.refused(3, "mount", spec, says=["'mine'"])
    node.clean()


# ---- listings that are not to be trusted -----------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ([entry("ok"), entry("../../etc/cron.d/x")], "'../../etc/cron.d/x'"),
        ([entry("/etc/passwd")], "'/etc/passwd'"),
        ([entry("a\0b")], "'a\\x00b'"),
        ([entry("x" * 256)], "xxx"),
        ([entry("a"), entry("a/b")], "'a'"),
        ([entry("a"), entry("a")], "'a'"),
        ([entry("a/./b")], "'a/./b'"),
        ([entry("a", -1)], "listing"),
    ],
    ids=["dotdot", "absolute", "nul", "long", "file-and-directory", "twice", "dot", "negative"],
)  # fmt: skip
def test_hostile_names_are_refused_before_the_first_byte(
    node: Node, hub: HubServer, tree: list[dict[str, object]], says: str
) -> None:
    hub.commit("acme/hostile", {"ok": b"x"}, tree=tree)
    # Once by way of a daemon; what lists is the same code.
    words = ["mount", "hf://acme/hostile", node.m] if ".." in says else ["prefetch", "hf://acme/hostile"]
    node.refused(5, *words, says=["hf://acme/hostile", says])
    assert hub.bytes_sent == 0
    node.clean()


def test_patterns_that_match_nothing(node: Node, hub: HubServer) -> None:
    spec = node.spec(
        {"source": "hf://acme/tiny", "mount_location": str(node.m), "allow_patterns": ["*.gguf"]}
    )
    node.refused(5, "mount", spec, says=["hf://acme/tiny", "*.gguf", "config.json"])
    node.refused(5, "plan", spec, says=["*.gguf"])
    assert hub.bytes_sent == 0
    node.clean()


def test_patterns_that_filter_out_the_config_warn(node: Node) -> None:
    spec = node.spec(
        {"source": "hf://acme/tiny", "mount_location": str(node.m), "allow_patterns": ["*.safetensors"]}
    )
    done = node.run("prefetch", spec)
    assert "bdnfs: warning: hf://acme/tiny" in done.err
    assert "config.json" in done.err
    node.run("mount", spec)
    node.holds({"model.safetensors": TINY["model.safetensors"]})


# ---- what does not fit ------------------------------------------------------------------------


def test_too_big_for_the_capacity_is_refused_before_the_first_byte(node: Node, hub: HubServer) -> None:
    hub.commit("acme/huge", {"model.safetensors": b"x"}, tree=[entry("model.safetensors", 10 << 30)])
    node.configure(cache={"capacity": "64MiB"})
    source = "hf://acme/huge"
    for command in (["mount", source, node.m], ["prefetch", source], ["mount", "--lazy", source, node.m]):
        node.refused(4, *command, says=[source, "needs 10 GiB", "of 64 MiB", "pinned: nothing"])
    assert hub.bytes_sent == 0
    node.clean()


def test_too_big_for_the_disk_and_who_pins_is_named(node: Node, hub: HubServer) -> None:
    node.configure(cache={"capacity": "64MiB"})
    node.run("prefetch", "hf://acme/big")
    node.run("mount", "hf://acme/big", node.m)
    commit = hub.repository("acme/big").branches["main"]
    hub.commit("acme/large", {"model.safetensors": b"x"}, tree=[entry("model.safetensors", 60 << 20)])
    hub.reset()
    node.refused(
        4, "mount", "hf://acme/large", node.place / "m2",
        says=["needs 60 MiB", f"pinned: hf://acme/big@{commit[:12]} (16 MiB, mounted)"],
    )  # fmt: skip
    node.configure(cache={"reserve": "100TiB"})
    node.refused(4, "mount", "hf://acme/tiny", node.place / "m2", says=["100 TiB of them reserved"])
    assert hub.bytes_sent == 0
    assert node.shown() == "native"
    node.run("unmount", node.m)
    node.clean()


THROUGH_A_DAEMON = ({"status": 403}, {"stall": True}, {"wrong_bytes": True})


# ---- answers that are none --------------------------------------------------------------------


def test_listing_refused_or_failing(node: Node, hub: HubServer) -> None:
    node.configure(upstream={"attempts": 1})
    for status, code in ((401, 3), (403, 3), (404, 5), (500, 5), (429, 5)):
        hub.faults.clear()
        hub.faults.add(
            match="/api/", times=None, status=status, headers={"Retry-After": "1"} if status == 429 else {}
        )
        node.refused(code, "prefetch", "hf://acme/tiny", says=["hf://acme/tiny"])
    node.clean()


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        ({"status": 401}, 3, "401"),
        ({"status": 403}, 3, "403"),
        ({"status": 404}, 5, ""),
        ({"status": 500}, 5, "500"),
        ({"status": 429, "headers": {"Retry-After": "4000"}}, 5, "429"),
        ({"truncate_at": 1000}, 5, ""),
        ({"stall": True}, 5, ""),
        ({"reset": True}, 5, ""),
        ({"wrong_bytes": True}, 6, "digest"),
    ],
    ids=["401", "403", "404", "500", "429", "truncated", "stalled", "reset", "wrong-bytes"],
)
def test_bytes_that_never_come_right(
    node: Node, hub: HubServer, fault: dict[str, object], code: int, says: str
) -> None:
    node.configure(upstream={"attempts": 2, "stall": "1s"})
    hub.faults.add(match="/cdn/|/resolve/.*safetensors", times=None, **fault)
    words = ["mount", "hf://acme/big", node.m] if fault in THROUGH_A_DAEMON else ["prefetch", "hf://acme/big"]
    node.refused(code, *words, says=["hf://acme/big", "model.safetensors", says])
    node.clean()
    # What is here is kept, what was wrong is not: the rest comes, and once only.
    hub.faults.clear()
    before = hub.bytes_sent
    node.run("prefetch", "hf://acme/big")
    node.run("mount", "hf://acme/big", node.m)
    node.holds(BIG)
    assert hub.bytes_sent - before <= BIG_BYTES


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"status": 429, "headers": {"Retry-After": "1"}},
        {"status": 503, "headers": {"Retry-After": "0"}},
        {"truncate_at": 1000},
        {"stall": True},
        {"reset": True},
    ],
    ids=["500", "429", "503", "truncated", "stalled", "reset"],
)
def test_bytes_that_come_right_at_another_try(node: Node, hub: HubServer, fault: dict[str, object]) -> None:
    node.configure(upstream={"attempts": 3, "stall": "1s"})
    hub.faults.add(match="/cdn/", times=1, **fault)
    before = hub.faults.hits
    began = time.monotonic()
    node.run("prefetch", "hf://acme/big")
    assert hub.faults.hits == before + 1
    if fault.get("status") == 429:
        assert time.monotonic() - began >= 1
    node.run("mount", "hf://acme/big", node.m)
    node.holds(BIG)
    assert BIG_BYTES <= hub.bytes_sent <= BIG_BYTES + CHUNK


def test_expired_signed_links_are_asked_for_again(node: Node, hub: HubServer) -> None:
    hub.faults.add(match="/cdn/", times=None, slow_bytes_per_s=40e6)
    node.configure(upstream={"fetches": 1})
    filling = node.start("prefetch", "hf://acme/big")
    until(lambda: hub.bytes_sent > CHUNK // 4, "the first bytes")
    hub.expire_links()
    filling.wait()
    assert any(request.status == 403 for request in hub.requests)
    assert hub.bytes_sent == BIG_BYTES


def test_small_files_with_wrong_bytes(node: Node, hub: HubServer) -> None:
    node.configure(upstream={"attempts": 2})
    hub.faults.add(match="/resolve/.*config.json", times=None, wrong_bytes=True)
    node.refused(6, "mount", "hf://acme/tiny", node.m, says=["config.json"])
    node.clean()


def test_one_bad_source_of_two_takes_the_good_one_away_again(node: Node, hub: HubServer) -> None:
    node.configure(upstream={"attempts": 1})
    hub.faults.add(match="/cdn/.*safetensors", after=1, times=None, status=404)
    spec = node.spec(
        {"source": "hf://acme/tiny", "mount_location": "tiny"},
        {"source": "hf://acme/big", "mount_location": "big"},
    )
    node.refused(5, "mount", spec, node.m, says=["404"])
    node.clean()
