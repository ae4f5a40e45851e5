"""A mount outlives the credentials it began with: real FUSE, a daemon, servers that refuse what is over."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import CHUNK
from tests.commands.node import Node, until
from tests.credentials.servers import BucketServer, StsServer

_dice = random.Random(11)
FILES = {f"part-{number}.bin": _dice.randbytes(70_000) for number in range(4)}
CONTENT = _dice.randbytes(4 * CHUNK)
ROLE = "arn:aws:iam::123456789012:role/reader"


def secrets_of(node: Node) -> Path:
    """Return the node's own secrets directory."""
    directory = node.home / "secrets"
    node.configure(secrets={"directory": str(directory)}, cache={"capacity": "256MiB"})
    return directory


def set_secret(node: Node, name: str, value: str) -> None:
    """Run `bdnfs secret set` with the value on standard input."""
    path = node.home / "value"
    path.write_text(f"{value}\n")
    with path.open("rb") as file:
        node.start_program(*node.program, "secret", "set", name, how={"stdin": file}).wait()
    path.unlink()


def read_chunk(node: Node, name: str, chunk: int) -> None:
    """Read one chunk of CONTENT through the mount, in a process of its own."""
    line = f"dd if={node.m}/{name} bs={CHUNK} skip={chunk} count=1 status=none iflag=fullblock"
    done = node.start_program("sh", "-c", f"{line} | sha256sum").wait(None)
    wanted = hashlib.sha256(CONTENT[chunk * CHUNK : (chunk + 1) * CHUNK]).hexdigest()
    assert done.out.split()[0] == wanted, done.err


def test_a_token_rotated_under_a_lazy_mount_is_picked_up(node: Node, hub: HubServer) -> None:
    """The old token is revoked, the new one set; the daemon goes on with what it has not read yet."""
    secrets_of(node)
    hub.commit("acme/rotated", FILES)
    hub.repository("acme/rotated").gated = True
    hub.token("hf_first", accepted=["acme/rotated"])
    set_secret(node, "hub", "hf_first")
    spec = node.spec(
        {"source": "hf://acme/rotated", "mount_location": str(node.m), "auth_secret_name": "hub"}
    )
    node.run("mount", "--lazy", "--no-fill", spec)
    assert node.read(node.m / "part-0.bin") == FILES["part-0.bin"]

    hub.tokens.pop("hf_first")
    set_secret(node, "hub", "hf_second")
    hub.token("hf_second", accepted=["acme/rotated"])
    assert node.read(node.m / "part-1.bin") == FILES["part-1.bin"]

    # The issuer is ahead of the node: refused for a while, and then it goes on by itself.
    hub.tokens.pop("hf_second")
    refused = node.start_program("cat", node.m / "part-2.bin").wait(1)
    assert "Permission denied" in refused.err
    log = Path(node.status()["log"]).read_text()
    assert "hf_second" not in log
    hub.token("hf_third", accepted=["acme/rotated"])
    set_secret(node, "hub", "hf_third")
    assert node.read(node.m / "part-2.bin") == FILES["part-2.bin"]
    node.run("unmount", node.m)
    node.clean()


@pytest.mark.long
def test_a_secret_that_is_taken_away_for_a_moment_is_no_reason_to_stop(node: Node, hub: HubServer) -> None:
    directory = secrets_of(node)
    hub.commit("acme/rotated", FILES)
    hub.repository("acme/rotated").gated = True
    hub.token("hf_first", accepted=["acme/rotated"])
    set_secret(node, "hub", "hf_first")
    spec = node.spec(
        {"source": "hf://acme/rotated", "mount_location": str(node.m), "auth_secret_name": "hub"}
    )
    node.run("mount", "--lazy", "--no-fill", spec)
    (directory / "hub").unlink()
    assert node.read(node.m / "part-1.bin") == FILES["part-1.bin"]
    node.run("unmount", node.m)
    node.clean()


def mount_s3(
    node: Node, sts: StsServer, bucket: BucketServer, auth: dict[str, Any], **environment: str
) -> None:
    spec = node.spec({"source": "s3://models/file.bin", "mount_location": str(node.m), "auth": auth})
    own = {"AWS_ENDPOINT_URL_STS": sts.url, "AWS_ENDPOINT_URL_S3": bucket.url, **environment}
    node.run("mount", "--lazy", "--no-fill", spec, **own)


def test_keys_of_a_role_that_expire_under_a_lazy_mount_are_exchanged_anew(node: Node, sts: StsServer) -> None:
    sts.lifetime_s = 1.5
    token = node.home / "oidc"
    token.write_text("jwt-one")
    node.configure(oidc={"aws_token_file": str(token)}, cache={"capacity": "256MiB"})
    auth = {"auth_method": "AWS_OIDC", "aws_oidc_role_arn": ROLE, "aws_oidc_region": "eu-west-1"}
    with BucketServer(sts, CONTENT) as bucket:
        mount_s3(node, sts, bucket, auth)
        token.write_text("jwt-two")
        for chunk in (0, 3):
            until(lambda: not sts.is_good(f"sts-session-{sts.lent}"), "the keys to expire")
            read_chunk(node, "file.bin", chunk)
        assert sts.asked[-1].form["WebIdentityToken"] == "jwt-two"
        node.run("unmount", node.m)
    node.clean()


@pytest.mark.long
def test_a_role_assumed_with_the_environments_keys(node: Node, sts: StsServer) -> None:
    """The daemon has no AWS_SECRET_ACCESS_KEY in its environment, and signs with it all the same."""
    sts.lifetime_s = 1.5
    auth = {
        "auth_method": "AWS_ASSUME_ROLE",
        "aws_assume_role_arn": ROLE,
        "aws_assume_role_region": "eu-west-1",
    }
    with BucketServer(sts, CONTENT) as bucket:
        mount_s3(node, sts, bucket, auth, AWS_ACCESS_KEY_ID="AKOWN", AWS_SECRET_ACCESS_KEY="own-hidden")
        (pid,) = node.daemons()
        assert b"own-hidden" not in Path(f"/proc/{pid}/environ").read_bytes()
        until(lambda: not sts.is_good(f"sts-session-{sts.lent}"), "the keys to expire")
        read_chunk(node, "file.bin", 3)
        assert "/eu-west-1/sts/" in sts.asked[-1].headers["authorization"]
        node.run("unmount", node.m)
    node.clean()


def test_session_keys_in_a_secret_that_another_tool_renews(node: Node, sts: StsServer) -> None:
    secrets_of(node)

    def renewed() -> str:
        import urllib3

        body = urllib3.request("POST", sts.url, body=b"Action=X").data.decode()
        session = body.partition("<SessionToken>")[2].partition("<")[0]
        return json.dumps(
            {"aws_access_key_id": "AK", "aws_secret_access_key": "SK", "aws_session_token": session}
        )

    set_secret(node, "keys", renewed())
    auth = {"auth_method": "CUSTOM_SECRET", "auth_secret_name": "keys"}
    with BucketServer(sts, CONTENT) as bucket:
        mount_s3(node, sts, bucket, auth)
        read_chunk(node, "file.bin", 0)
        sts.revoke()
        set_secret(node, "keys", renewed())
        read_chunk(node, "file.bin", 3)
        node.run("unmount", node.m)
    node.clean()


@pytest.mark.long
def test_a_new_login_under_a_lazy_mount_is_picked_up(node: Node, hub: HubServer) -> None:
    node.configure(cache={"capacity": "256MiB"})
    hub.commit("acme/rotated", FILES)
    hub.repository("acme/rotated").gated = True
    login = node.home / ".cache/huggingface/token"
    login.parent.mkdir(parents=True)
    login.write_text(hub.token("hf_first", accepted=["acme/rotated"]))
    node.run("mount", "--lazy", "--no-fill", "hf://acme/rotated", node.m)
    hub.tokens.pop("hf_first")
    login.write_text(hub.token("hf_second", accepted=["acme/rotated"]))
    assert node.read(node.m / "part-3.bin") == FILES["part-3.bin"]
    node.run("unmount", node.m)
    node.clean()
