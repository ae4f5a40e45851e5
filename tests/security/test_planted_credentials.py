"""Secrets of every kind, planted anew for each test, and looked for in all that the programs write or show.

Every server says back what it was shown; every command is run, those that fail, too.
"""

import base64
import contextlib
import json
import secrets
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, CHUNK
from tests.commands.node import Node
from tests.credentials.servers import Answer, Asked, BucketServer, GoogleServer, Server, StsServer
from tests.credentials.test_google import account_json
from tests.credentials.test_google import key as key

ROLE = "arn:aws:iam::123456789012:role/reader"
CONTENT = b"0123456789abcdef" * (3 * CHUNK // 16)


def planted(kind: str) -> str:
    return f"{kind}Planted{secrets.token_hex(16)}"


@dataclass
class Case:
    """A source, how it is read, and every text that must never be seen. fail: make its credentials useless."""

    weights: dict[str, Any]
    hidden: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    works: bool = True
    fail: Callable[[], object] = lambda: None


Make = Callable[[HubServer, Path, Any, contextlib.ExitStack], Case]


class Echo(Server):
    """Refuses, and says back what it was shown in every way there is."""

    def answer(self, asked: Asked) -> Answer:
        shown = " ".join((*asked.headers.values(), asked.body.decode(errors="replace")))
        body = json.dumps({"error": {"status": shown, "message": shown}}).encode()
        if "x-ms-version" in asked.headers or "x-amz-date" in asked.headers:
            code = asked.headers.get("x-amz-security-token", "AccessDenied")
            body = (
                f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{shown}</Message></Error>".encode()
            )
        line = "".join(char for char in shown if char.isprintable())[:2000]
        return Answer(403, body, {"X-Error-Message": line, "WWW-Authenticate": line, "x-ms-error-code": line})


def hub_file(hub: HubServer, place: Path, key: Any, servers: contextlib.ExitStack) -> Case:
    token = hub.token(planted("hf_"), accepted=["acme/mine"])
    hub.commit("acme/mine", BIG)
    hub.repository("acme/mine").gated = True
    weights = {"source": "hf://acme/mine", "auth_secret_name": "mine"}
    return Case(weights, [token], files={"mine": token}, fail=lambda: hub.tokens.pop(token))


def hub_named_variable(hub: HubServer, place: Path, key: Any, servers: contextlib.ExitStack) -> Case:
    case = hub_file(hub, place, key, servers)
    case.environment = {"mine": case.files.pop("mine")}
    return case


def s3_secret(hub: HubServer, place: Path, key: Any, servers: contextlib.ExitStack) -> Case:
    sts = servers.enter_context(StsServer())
    bucket = servers.enter_context(BucketServer(sts, CONTENT))
    sts.token = planted("session")
    sts.answer(Asked("POST", "/", {}, b"Action=X"))
    secret = planted("sk")
    fields = {
        "aws_access_key_id": planted("AK"),
        "aws_secret_access_key": secret,
        "aws_session_token": f"{sts.token}-1",
    }
    return Case(
        {"source": "s3://models/file.bin", "auth_secret_name": "mine"},
        [secret, sts.token],
        {"AWS_ENDPOINT_URL_S3": bucket.url},
        files={"mine": json.dumps(fields)},
        fail=sts.revoke,
    )


def s3_oidc(hub: HubServer, place: Path, key: Any, servers: contextlib.ExitStack) -> Case:
    sts = servers.enter_context(StsServer())
    bucket = servers.enter_context(BucketServer(sts, CONTENT))
    sts.token, token = planted("session"), planted("eyJ")
    (place / "oidc").write_text(token)
    auth = {"auth_method": "AWS_OIDC", "aws_oidc_role_arn": ROLE, "aws_oidc_region": "eu-west-1"}
    return Case(
        {"source": "s3://models/file.bin", "auth": auth},
        [token, sts.token],
        {"AWS_ENDPOINT_URL_S3": bucket.url, "AWS_ENDPOINT_URL_STS": sts.url},
        {"oidc": {"aws_token_file": str(place / "oidc")}},
        fail=lambda: setattr(sts, "refusal", (403, "AccessDenied")),
    )


def s3_assumed(hub: HubServer, place: Path, key: Any, servers: contextlib.ExitStack) -> Case:
    case = s3_oidc(hub, place, key, servers)
    own, session = planted("sk"), planted("own")
    case.weights["auth"] = {
        "auth_method": "AWS_ASSUME_ROLE", "aws_assume_role_arn": ROLE, "aws_assume_role_region": "eu-west-1"
    }  # fmt: skip
    case.environment |= {
        "AWS_ACCESS_KEY_ID": "AK",
        "AWS_SECRET_ACCESS_KEY": own,
        "AWS_SESSION_TOKEN": session,
    }
    case.hidden += [own, session]
    return case


def azure_secret(hub: HubServer, place: Path, key: Any, servers: contextlib.ExitStack) -> Case:
    echo = servers.enter_context(Echo())
    account_key = base64.b64encode(planted("azure").encode()).decode()
    return Case(
        {"source": "azure://account/container/file.bin", "auth_secret_name": "mine"},
        [account_key],
        {"AZURE_STORAGE_ENDPOINT": f"{echo.url}/account"},
        files={"mine": json.dumps({"account_key": account_key})},
        works=False,
    )


def azure_variable(hub: HubServer, place: Path, key: Any, servers: contextlib.ExitStack) -> Case:
    case = azure_secret(hub, place, key, servers)
    del case.weights["auth_secret_name"]
    case.environment["AZURE_STORAGE_ACCOUNT_KEY"] = case.hidden[0]
    return case


def google_account(hub: HubServer, place: Path, key: Any, servers: contextlib.ExitStack) -> Case:
    echo, google = servers.enter_context(Echo()), servers.enter_context(GoogleServer())
    google.token = planted("ya29.")
    text = account_json(key, f"{google.url}/token")
    lines = json.loads(text)["private_key"].splitlines()[1:-1]
    return Case(
        {"source": "gs://bucket/file.bin", "auth_secret_name": "mine"},
        [google.token, lines[0], lines[-2]],
        {"STORAGE_EMULATOR_HOST": echo.url},
        files={"mine": text},
        works=False,
        fail=lambda: google.refusals.update({"/token": (400, "invalid_grant")}),
    )


def google_oidc(hub: HubServer, place: Path, key: Any, servers: contextlib.ExitStack) -> Case:
    echo, google = servers.enter_context(Echo()), servers.enter_context(GoogleServer())
    google.token, token = planted("ya29."), planted("eyJ")
    (place / "oidc").write_text(token)
    auth = {
        "auth_method": "GCP_OIDC",
        "gcp_oidc_service_account": "reader@p.iam.gserviceaccount.com",
        "gcp_oidc_workload_id_provider": "projects/1/locations/global/workloadIdentityPools/a/providers/b",
    }
    variables = ("CLOUDSDK_API_ENDPOINT_OVERRIDES_STS", "CLOUDSDK_API_ENDPOINT_OVERRIDES_IAMCREDENTIALS")
    return Case(
        {"source": "gs://bucket/file.bin", "auth": auth},
        [google.token, token, "ya29.federated"],
        {"STORAGE_EMULATOR_HOST": echo.url, **dict.fromkeys(variables, google.url)},
        {"oidc": {"gcp_token_file": str(place / "oidc")}},
        works=False,
        fail=lambda: google.refusals.update({"/v1/token": (400, {"status": token})}),
    )


def web_password(hub: HubServer, place: Path, key: Any, servers: contextlib.ExitStack) -> Case:
    echo = servers.enter_context(Echo())
    password = planted("pass")
    weights = {"source": f"{echo.url}/file.bin", "auth_secret_name": "mine"}
    said = base64.b64encode(f"me:{password}".encode()).decode()
    return Case(weights, [password, said], files={"mine": f"me:{password}"}, works=False)


def proxy_password(hub: HubServer, place: Path, key: Any, servers: contextlib.ExitStack) -> Case:
    """The Hub by way of a proxy that wants a password; it passes everything on."""
    password = planted("pass")
    token = hub.token(planted("hf_"), accepted=["acme/mine"])
    hub.commit("acme/mine", BIG)
    hub.repository("acme/mine").gated = True
    proxy = servers.enter_context(Passing(hub))
    return Case(
        {"source": "hf://acme/mine"},
        [password, token, base64.b64encode(f"me:{password}".encode()).decode()],
        {"HTTP_PROXY": proxy.url.replace("//", f"//me:{password}@"), "HF_TOKEN": token},
        fail=lambda: setattr(proxy, "wants", "nothing of this"),
    )


class Passing(Server):
    """A proxy: fetches what it is asked for, for whoever shows a password."""

    def __init__(self, hub: HubServer) -> None:
        super().__init__()
        self.wants = "Basic "

    def answer(self, asked: Asked) -> Answer:
        import urllib3

        shown = asked.headers.get("proxy-authorization", "")
        if not shown.startswith(self.wants):
            return Answer(407, shown.encode(), {"Proxy-Authenticate": f"Basic realm={shown}"})
        kept = {name: asked.headers[name] for name in ("authorization", "range") if name in asked.headers}
        found = urllib3.request(asked.method, asked.path, headers=kept, redirect=False)
        headers = {
            name: value for name, value in found.headers.items() if name.lower() != "transfer-encoding"
        }
        return Answer(found.status, found.data, headers)


CASES = (hub_file, s3_assumed, google_oidc)
MORE = (hub_named_variable, s3_secret, s3_oidc, azure_secret, azure_variable, google_account, web_password,
        proxy_password)  # fmt: skip


@pytest.fixture
def servers() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def look(node: Node, hidden: list[str]) -> None:
    """Fail where anything hidden is in a process's arguments, a daemon's environment, or a mount table."""
    seen = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    seen += Path("/proc/self/mountinfo").read_text()
    for pid in node.daemons():
        seen += Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    assert not [each for each in hidden if each in seen]


@pytest.mark.parametrize("make", [*CASES, *(pytest.param(make, marks=pytest.mark.long) for make in MORE)])
def test_nothing_planted_is_seen(
    node: Node, hub: HubServer, key: Any, servers: contextlib.ExitStack, make: Make
) -> None:
    case = make(hub, node.home, key, servers)
    directory = node.home / "secrets"
    directory.mkdir(mode=0o700)
    for name, text in case.files.items():
        (directory / name).write_text(text)
    sections = {"secrets": {"directory": str(directory)}, "upstream": {"attempts": 1}, **case.config}
    node.configure(**sections, cache={"capacity": "256MiB"})
    spec = node.spec({**case.weights, "mount_location": str(node.m)})

    def run(code: int | None, *words: str) -> None:
        node.run(*words, code=code, **case.environment)
        look(node, case.hidden)

    run(0 if case.works else 3, "plan", spec, "--json")
    run(0 if case.works else 3, "mount", "--lazy", "--no-fill", spec)
    if case.works:
        assert len(node.daemons()) == 1
        (read,) = node.start_program("find", node.m, "-name", "*e*", "-size", "+1M").wait().out.split()
        node.start_program("head", "-c", "1000", read).wait()
        run(0, "status")
        run(0, "status", "--json")
    run(0, "secret", "ls", "--json")
    case.fail()
    if case.works:
        node.start_program("tail", "-c", "1000", read).wait(None)
        run(0, "unmount", "--force", str(node.m))
        run(None, "prefetch", "--refresh", spec)
        run(None, "run", "--refresh", spec, "--", "true")
        run(0, "cache", "ls")
    run(None, "lock", spec)
    everywhere = [node.cache, node.place / "commands", node.place / "tmp"]
    for each in case.hidden:
        found = subprocess.run(
            ["grep", "-rlaF", "--", each, *everywhere], capture_output=True, text=True, timeout=60
        )
        assert found.stdout == "", f"{each} is in {found.stdout}"
