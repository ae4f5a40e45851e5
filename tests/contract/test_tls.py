"""Certificates: only those of a trusted authority, or of the one that was named."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdnfs.core.errors import SpecError, UpstreamError
from bdnfs.origins.hub_revision import branch_commit
from bdnfs.origins.registry import open_origin
from bdnfs.spec.config import UpstreamConfig
from bdnfs.spec.source import parse_source
from tests.contract.servers import NginxSite, child, free_port

SHA = "0123456789" * 4
ITEM = '{"name": "model.bin", "size": "7", "generation": "1"}'


class TlsSite(NginxSite):
    """nginx with a certificate that signs itself."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, ranged=True)
        self.tls_port = free_port()
        self.certificate = directory / "certificate.pem"
        command = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x"
        )
        names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
        files = ["-keyout", str(directory / "key.pem"), "-out", str(self.certificate)]
        subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
        text = self.config.read_text().replace(
            f"listen 127.0.0.1:{self.port};",
            f"listen 127.0.0.1:{self.port}; listen 127.0.0.1:{self.tls_port} ssl; ssl_certificate "
            f"{self.certificate}; "
            f"ssl_certificate_key {directory}/key.pem; location /api/ "
            f'{{ return 200 \'{{"sha": "{SHA}"}}\'; }}'
            f"location /storage/ {{ return 200 '{{\"items\": [{ITEM}]}}'; }}"
            f"location /down/ {{ return 302 http://127.0.0.1:{self.port}/c/file.bin; }}",
        )
        self.config.write_text(text)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsSite]:
    site = TlsSite(tmp_path_factory.mktemp("tls"))
    site.put("c", {"file.bin": b"x" * 1000})
    with child(site.argv, site.port):
        yield site


def listed(url: str, ca_bundle: str | None) -> list[int]:
    origin = open_origin(parse_source(url), UpstreamConfig(ca_bundle=ca_bundle, stall_s=5.0))
    try:
        return [entry.size for entry in origin.list(None)]
    finally:
        origin.close()


def test_an_unknown_authority_is_refused_and_a_named_one_taken(tls: TlsSite) -> None:
    url = f"https://127.0.0.1:{tls.tls_port}/c/file.bin"
    with pytest.raises(UpstreamError, match="certificate") as caught:
        listed(url, None)
    assert type(caught.value) is UpstreamError
    assert listed(url, str(tls.certificate)) == [1000]


def test_the_question_of_a_hit_checks_certificates_too(tls: TlsSite) -> None:
    endpoint = f"https://127.0.0.1:{tls.tls_port}"
    with pytest.raises(UpstreamError, match="certificate"):
        branch_commit(endpoint, "org/model", "model", None)
    assert branch_commit(endpoint, "org/model", "model", None, ca_bundle=str(tls.certificate)) == SHA


def test_google_is_asked_over_tls_with_the_authority_that_was_named(tls: TlsSite) -> None:
    google = {"STORAGE_EMULATOR_HOST": f"https://127.0.0.1:{tls.tls_port}"}
    for bundle, expected in ((str(tls.certificate), [7]), (None, None)):
        upstream = UpstreamConfig(google=google, ca_bundle=bundle, stall_s=5.0)
        origin = open_origin(parse_source("gs://bucket"), upstream)
        if expected is None:
            with pytest.raises(UpstreamError, match="certificate") as caught:
                list(origin.list(None))
            assert type(caught.value) is UpstreamError
        else:
            assert [entry.size for entry in origin.list(None)] == expected
        origin.close()


def test_https_to_a_port_without_tls_says_so(tls: TlsSite) -> None:
    with pytest.raises(UpstreamError, match="TLS"):
        listed(f"https://127.0.0.1:{tls.port}/c/file.bin", str(tls.certificate))


def test_a_redirect_gives_tls_up_never(tls: TlsSite) -> None:
    with pytest.raises(UpstreamError, match="without TLS"):
        listed(f"https://127.0.0.1:{tls.tls_port}/down/file.bin", str(tls.certificate))


def test_a_bundle_that_cannot_be_read_is_named(tls: TlsSite, tmp_path: Path) -> None:
    for bundle in (str(tmp_path / "missing.pem"), str(tls.config)):
        for ask in (
            lambda bundle=bundle: listed(f"https://127.0.0.1:{tls.tls_port}/c/file.bin", bundle),
            lambda bundle=bundle: branch_commit(
                "https://127.0.0.1:1", "o/m", "model", None, ca_bundle=bundle
            ),
            *(
                lambda bundle=bundle, text=text: open_origin(
                    parse_source(text), UpstreamConfig(ca_bundle=bundle)
                )
                for text in ("s3://b/k", "r2://a.b/k", "azure://a/c/k", "gs://b/k")
            ),
        ):
            with pytest.raises(SpecError, match="CA bundle"):
                ask()
