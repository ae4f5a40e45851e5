"""One token, planted anew for each test, looked for wherever anybody could find it afterwards."""

import os
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG
from tests.commands.node import Node


@pytest.fixture
def token(hub: HubServer) -> str:
    """A token of this test's own, that opens acme/mine: three chunks, so that a daemon is needed."""
    planted = f"hf_Planted{secrets.token_hex(16)}"
    hub.token(planted, accepted=["acme/mine"])
    hub.commit("acme/mine", BIG)
    hub.repository("acme/mine").gated = True
    return planted


def check_files(node: Node, token: str) -> None:
    """Look in everything the node has: cache, index, logs, records, outputs, reports of bugs."""
    found = subprocess.run(
        ["grep", "-rlaF", "--", token, node.cache, node.place / "commands", node.place / "tmp"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert found.stdout == "", f"the token is in {found.stdout}"
    assert token not in Path("/proc/self/mountinfo").read_text()


def daemons_own(node: Node, file: str) -> bytes:
    return b"".join(Path(f"/proc/{pid}/{file}").read_bytes() for pid in node.daemons())


def test_the_daemon_has_it_neither_in_argv_nor_in_its_environment(
    node: Node, hub: HubServer, token: str
) -> None:
    """It comes on the daemon's stdin; a child of the daemon's, or a dump of its environment, has nothing."""
    hub.faults.add(match="/cdn/", times=None, slow_bytes_per_s=3e6)
    node.run("mount", "--lazy", "hf://acme/mine", node.m, HF_TOKEN=token, TRUSS_SECRET_other="kept")
    assert len(node.daemons()) == 1
    assert token.encode() not in daemons_own(node, "cmdline")
    environment = daemons_own(node, "environ")
    assert token.encode() not in environment
    assert b"HF_ENDPOINT=" in environment  # nothing else was taken away
    for words in (("status",), ("status", "--json"), ("cache", "ls"), ("plan", "hf://acme/mine", "--json")):
        node.run(*words, HF_TOKEN=token)
    hub.faults.clear()
    node.run("wait", node.m)
    check_files(node, token)
    node.run("unmount", node.m)
    node.clean()


@pytest.mark.parametrize("progress", ["plain", "json", "bar", "none"])
def test_progress_does_not_show_it(node: Node, token: str, progress: str) -> None:
    node.run("mount", "hf://acme/mine", node.m, "--progress", progress, HF_TOKEN=token)
    node.run("unmount", node.m)
    check_files(node, token)


Echo = Callable[[HubServer, str], None]


def in_body(hub: HubServer, token: str) -> None:
    hub.faults.add(match="", times=None, status=500, body=f"you sent Bearer {token}\n")


def in_error_headers(hub: HubServer, token: str) -> None:
    headers = dict.fromkeys(
        ("X-Error-Code", "X-Error-Message", "WWW-Authenticate", "Retry-After"), f"bad {token}"
    )
    hub.faults.add(match="", times=None, status=401, body=token, headers=headers)


def in_redirect(hub: HubServer, token: str) -> None:
    hub.faults.add(
        match="/resolve/", times=None, redirect_to=f"http://127.0.0.1:1/file?token={token}#{token}"
    )


def in_loop(hub: HubServer, token: str) -> None:
    hub.faults.add(match="", times=None, redirect_to=f"{hub.url}/api/models/x?token={token}")


def in_user_of_redirect(hub: HubServer, token: str) -> None:
    hub.faults.add(match="", times=None, redirect_to=f"http://me:{token}@127.0.0.1:1/x")


def in_range(hub: HubServer, token: str) -> None:
    hub.faults.add(match="/cdn/", times=None, headers={"Content-Range": f"bytes {token}"})


def in_sizes(hub: HubServer, token: str) -> None:
    hub.faults.add(match="/resolve/", times=None, headers={"X-Linked-Size": token})


def in_coding(hub: HubServer, token: str) -> None:
    hub.faults.add(match="", times=None, headers={"Content-Encoding": token})


def in_link(hub: HubServer, token: str) -> None:
    hub.faults.add(match="/tree/", times=None, headers={"Link": f'<http://[{token}/>; rel="next"'})


def in_listing(hub: HubServer, token: str) -> None:
    hub.faults.add(match="/tree/", times=None, status=200, body=f'{{"error": "{token}"}}')


@pytest.mark.parametrize(
    "echo",
    [in_body, in_error_headers, in_redirect, in_loop, in_user_of_redirect, in_range, in_sizes, in_coding, in_link,
     in_listing],
)  # fmt: skip
def test_an_upstream_that_says_it_back(node: Node, hub: HubServer, token: str, echo: Echo) -> None:
    """In an error's body, a header, a redirect's query: none of that is shown, kept or logged."""
    node.configure(upstream={"attempts": 1})
    echo(hub, token)
    for words in (("prefetch", "hf://acme/mine"), ("mount", "--lazy", "hf://acme/mine", node.m)):
        done = node.run(*words, code=None, HF_TOKEN=token)
        if words[0] == "prefetch":
            assert done.code in (3, 5, 6), done.err
    node.start("unmount", "--force", node.m).wait(None)
    check_files(node, token)
    hub.faults.clear()
    hub.expire_links()


FAILURES = (
    (2, ("mount", "hf://acme/mine", "/proc/x")),
    (2, ("mount", "hf://acme/mine?token={token}", "{m}")),
    (2, ("mount", "https://user:{token}@localhost:1/x?token={token}", "{m}")),
    (4, ("prefetch", "hf://acme/mine")),
    (5, ("prefetch", "hf://acme/nowhere")),
    (7, ("prefetch", "hf://acme/mine", "--timeout", "1ms")),
    (8, ("mount", "hf://acme/mine", "/etc/passwd/x")),
    (9, ("prefetch", "hf://acme/mine")),
)


@pytest.mark.parametrize(
    ("code", "words"), FAILURES, ids=lambda value: str(value) if isinstance(value, int) else ""
)
def test_no_failure_shows_it(node: Node, token: str, code: int, words: tuple[str, ...]) -> None:
    if code == 4:
        node.configure(cache={"reserve": "900TiB"})
    if code == 9:
        node.cache.mkdir()
        (node.cache / "format").write_text("99")
        os.chmod(node.cache, 0o700)
    given = [word.format(token=token, m=node.m) for word in words]
    done = node.start(*given, HF_TOKEN=token).wait(code)
    assert token not in done.out + done.err
    # Its own argv is its user's to choose; no child of it is given what was in there.
    check_files(node, token)


BUG = """
import os, sys
import bdnfs.spec.load
def broken(*words, **how):
    token = os.environ["HF_TOKEN"]
    raise KeyError("x")
bdnfs.spec.load.load_spec = broken
import bdnfs.cli.arguments
bdnfs.cli.arguments.load_spec = broken
from bdnfs.cli import main
sys.argv = ["bdnfs", "prefetch", "hf://acme/mine"]
main()
"""


def test_the_report_of_a_bug_has_no_variables(node: Node, token: str) -> None:
    command = node.start_program("python", "-c", BUG, HF_TOKEN=token)
    done = command.wait(1)
    (report,) = (node.place / "tmp").glob("bdnfs-bug-*")
    assert str(report) in done.err
    assert "KeyError" in report.read_text()
    check_files(node, token)
