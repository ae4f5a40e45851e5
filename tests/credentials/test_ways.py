"""Proxies and authorities, by the usual variables: for every origin over the web, and for each exchange."""

import base64
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bdnfs.core.errors import BdnfsError, CredentialsError, NotFoundError, UnavailableError, UpstreamError
from bdnfs.origins.credentials import Credential
from bdnfs.origins.google import IAM_VARIABLE, STS_VARIABLE, account_fields, by_account
from bdnfs.origins.http import HttpConfig
from bdnfs.origins.lending import aws_keys, google_token
from bdnfs.origins.registry import open_origin
from bdnfs.spec.config import parse_config
from bdnfs.spec.source import parse_source
from bdnfs.spec.upstream import OidcConfig, UpstreamConfig
from tests.credentials.servers import Answer, Asked, GoogleServer, Server, StsServer
from tests.credentials.test_google import AUTH, account_json
from tests.credentials.test_google import key as key
from tests.credentials.test_sts import ASSUME, OIDC, OWN

SOURCES = ("hf://org/model", "s3://bucket/k", "r2://account.bucket/k", "cw://bucket/k",
           "azure://account/container/k", "gs://bucket/k", "https://HOST/file.bin")  # fmt: skip


class Lender(Server):
    """An STS, Google's token endpoints and, at any other place, nothing: whatever is asked, also by way of it."""

    def __init__(self, certificate: str | None = None) -> None:
        super().__init__(certificate)
        self._sts, self._google = StsServer(), GoogleServer()

    def answer(self, asked: Asked) -> Answer:
        if "oken" in asked.path:
            path = asked.path.removeprefix("http://upstream.test")
            return self._google.answer(asked._replace(path=path))
        return self._sts.answer(asked) if b"Action=" in asked.body else Answer(404, b"")

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for each in (self._sts, self._google):
            each._server.server_close()


class Case(NamedTuple):
    """What is asked for, of url; how it is reached comes from the environment."""

    name: str
    ask: Callable[[str, UpstreamConfig], object]


def reached(url: str, environment: dict[str, str]) -> UpstreamConfig:
    """Return the config that variables make, with everything at url."""
    names = ("AWS_ENDPOINT_URL", "R2_ENDPOINT_URL", "CW_ENDPOINT_URL", STS_VARIABLE, IAM_VARIABLE, "HF_ENDPOINT",
             "STORAGE_EMULATOR_HOST")  # fmt: skip
    own = {**OWN, **dict.fromkeys(names, url), "AZURE_STORAGE_ENDPOINT": f"{url}/account", "HOME": "/none"}
    return parse_config({"upstream": {"stall": "5s"}}, None, {**own, **environment}).upstream


def list_it(text: str) -> Callable[[str, UpstreamConfig], object]:
    def ask(url: str, upstream: UpstreamConfig) -> object:
        scheme, _, host = url.partition("://")
        origin = open_origin(parse_source(text.replace("https://HOST", f"{scheme}://{host}")), upstream)
        try:
            return list(origin.list(origin.resolve(None)))
        finally:
            origin.close()

    return ask


def lend(
    make: Callable[[str, UpstreamConfig, HttpConfig], Credential[Any]],
) -> Callable[[str, UpstreamConfig], object]:
    return lambda url, upstream: make(
        url, upstream, HttpConfig(upstream.proxies, upstream.ca_bundle, upstream.stall_s)
    ).current()


@pytest.fixture(params=[*SOURCES, "AWS_OIDC", "AWS_ASSUME_ROLE", "GCP_OIDC", "service account"])
def case(request: pytest.FixtureRequest, tmp_path: Path, key: Any) -> Case:
    name: str = request.param
    token = tmp_path / "oidc"
    token.write_text("jwt")
    oidc = OidcConfig(str(token), str(token))

    def with_token(upstream: UpstreamConfig) -> UpstreamConfig:
        import msgspec

        return msgspec.structs.replace(upstream, oidc=oidc)

    exchanges: dict[str, Callable[[str, UpstreamConfig, HttpConfig], Credential[Any]]] = {
        "AWS_OIDC": lambda url, upstream, http: aws_keys(OIDC, with_token(upstream), http).keys,
        "AWS_ASSUME_ROLE": lambda url, upstream, http: aws_keys(ASSUME, upstream, http).keys,
        "GCP_OIDC": lambda url, upstream, http: google_token(AUTH, with_token(upstream), http),
        "service account": lambda url, upstream, http: by_account(
            "the secret", lambda: account_fields(account_json(key, f"{url}/token")), http
        ),
    }
    return Case(name, list_it(name) if name in SOURCES else lend(exchanges[name]))


def answer(case: Case, url: str, environment: dict[str, str]) -> BdnfsError | None:
    try:
        case.ask(url, reached(url, environment))
    except BdnfsError as error:
        return error
    return None


def test_everything_goes_by_way_of_the_proxy_but_what_is_excluded(case: Case) -> None:
    with Lender() as proxy:
        environment = {"HTTP_PROXY": proxy.url.replace("//", "//user:hidden@")}
        error = answer(case, "http://upstream.test", environment)
        assert error is None or not isinstance(error, UnavailableError | CredentialsError), error
        assert proxy.asked
        said = base64.b64encode(b"user:hidden").decode()
        for asked in proxy.asked:
            assert asked.path.startswith(("http://upstream.test/", "http://bucket.upstream.test/"))
            assert asked.headers["proxy-authorization"] == f"Basic {said}"
        before = len(proxy.asked)
        error = answer(
            case, "http://upstream.test", {**environment, "NO_PROXY": ".upstream.test,upstream.test"}
        )
        assert isinstance(error, UnavailableError), error
        assert "hidden" not in str(error)
        assert len(proxy.asked) == before


class Tls(NamedTuple):
    """What a server shows (its key with it), and a bundle in which its authority is the second."""

    server: str
    bundle: str


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    place = tmp_path_factory.mktemp("tls")

    def openssl(line: str) -> None:
        subprocess.run(["openssl", *line.split()], check=True, capture_output=True, cwd=place)

    curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    for name in ("other", "authority"):
        openssl(f"req -x509 {curve} -days 2 -subj /CN={name} -keyout {name}.key -out {name}.crt")
    openssl(f"req {curve} -subj /CN=server -keyout server.key -out server.csr")
    (place / "names").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    signing = "-CA authority.crt -CAkey authority.key -CAcreateserial -days 2 -extfile names"
    openssl(f"x509 -req -in server.csr {signing} -out server.crt")
    for whole, parts in (
        ("server.pem", ("server.crt", "server.key")),
        ("bundle.pem", ("other.crt", "authority.crt")),
    ):
        (place / whole).write_text("".join((place / part).read_text() for part in parts))
    return Tls(str(place / "server.pem"), str(place / "bundle.pem"))


def test_only_the_authorities_that_are_named_are_trusted(case: Case, tls: Tls) -> None:
    with Lender(tls.server) as server:
        error = answer(case, server.url, {})
        assert type(error) is UpstreamError, error
        assert "certificate" in str(error)
        assert server.asked == []
        error = answer(case, server.url, {"SSL_CERT_FILE": tls.bundle})
        assert error is None or "TLS" not in str(error)
        assert not isinstance(error, UnavailableError), error
        assert server.asked


def test_the_bundle_of_the_aws_sdks_counts_for_s3_and_its_sts(tls: Tls, tmp_path: Path) -> None:
    (tmp_path / "oidc").write_text("jwt")
    with Lender(tls.server) as server:
        variables = {"AWS_CA_BUNDLE": tls.bundle, "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "oidc")}
        origin = open_origin(parse_source("s3://bucket/k"), reached(server.url, variables), OIDC)
        with pytest.raises(NotFoundError):
            list(origin.list(None))
        origin.close()
    assert b"AssumeRoleWithWebIdentity" in server.asked[0].body
    assert server.asked[1].headers["x-amz-security-token"] == "sts-session-1"
