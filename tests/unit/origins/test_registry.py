import subprocess
import sys

import pytest

from bdnfs.core.errors import CredentialsError, SpecError
from bdnfs.origins.registry import open_origin
from bdnfs.spec.config import Secret, UpstreamConfig
from bdnfs.spec.source import parse_source


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("hf://org/repo", "HubOrigin"),
        ("hf://datasets/org/name", "HubOrigin"),
        ("https://host/file", "HttpsOrigin"),
        ("http://host/file", "HttpsOrigin"),
        ("s3://bucket/prefix", "S3Origin"),
        ("r2://account.bucket/prefix", "ObjectOrigin"),
        ("cw://bucket/prefix", "ObjectOrigin"),
        ("azure://account/container/prefix", "AzureOrigin"),
        ("gs://bucket/prefix", "GcsOrigin"),
        ("file:///tmp", "DirectoryOrigin"),
        ("local:///tmp", "DirectoryOrigin"),
        ("sftp://host/path", "SftpOrigin"),
        ("ftp://host/path", "GenericOrigin"),
    ],
)
def test_each_scheme_has_its_origin(text: str, kind: str) -> None:
    origin = open_origin(parse_source(text), UpstreamConfig())
    assert type(origin).__name__ == kind
    origin.close()


def test_what_is_not_installed_is_named() -> None:
    with pytest.raises(SpecError, match="smb"):
        open_origin(parse_source("smb://host/share"), UpstreamConfig())


def test_gcsfs_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ("bdnfs.origins.gcs", "bdnfs.origins.gcs_client", "bdnfs.origins.gcs_session")
    for name in (*ours, "gcsfs.core"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(SpecError, match=r"pip install 'bdnfs\[gcs\]'"):
        open_origin(parse_source("gs://bucket/prefix"), UpstreamConfig())


def test_a_url_without_a_file_is_refused() -> None:
    for text in ("https://host/path/", "https://host", "https://host?x=1"):
        with pytest.raises(SpecError, match="names no file"):
            open_origin(parse_source(text), UpstreamConfig())


def test_a_query_tells_sources_apart_and_is_not_written_down() -> None:
    names = [
        open_origin(parse_source(f"https://host/file{query}"), UpstreamConfig()).name
        for query in ("", "?id=alpha", "?id=beta")
    ]
    assert len(set(names)) == 3
    assert not any("alpha" in name for name in names)


def test_secrets_of_the_wrong_shape_are_refused_without_being_shown() -> None:
    for text, secret in (
        ("s3://b/k", "hidden"),
        ("r2://a.b/k", "hidden"),
        ("azure://a/c/k", "hidden"),
        ("azure://a/c/k", '{"account_key": "hidden!"}'),
        ("gs://b/k", '{"hidden": 1}'),
        ("ftp://host/x", "{hidden"),
        ("sftp://h/x", "-----BEGIN X PRIVATE KEY-----\nhidden"),
    ):
        with pytest.raises(CredentialsError) as caught:
            open_origin(parse_source(text), UpstreamConfig(), Secret(secret))
        assert "hidden" not in str(caught.value)


def loaded_by(code: str) -> set[str]:
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(' '.join(sys.modules))"],
        check=True,
        capture_output=True,
        text=True,
    )
    return {name.partition(".")[0] for name in found.stdout.split()}


def test_a_hit_loads_nothing_heavy() -> None:
    heavy = {
        "urllib3",
        "obstore",
        "fsspec",
        "gcsfs",
        "aiohttp",
        "paramiko",
        "huggingface_hub",
        "trio",
        "rich",
    }
    assert not loaded_by("import bdnfs.origins.hub_revision") & (heavy | {"msgspec"})
    assert not loaded_by("import bdnfs.origins.registry") & heavy


def test_one_kind_of_origin_does_not_load_another() -> None:
    opened = "from bdnfs.origins.registry import open_origin; from bdnfs.spec.source import parse_source; "
    opened += (
        "from bdnfs.spec.config import UpstreamConfig; open_origin(parse_source({!r}), UpstreamConfig())"
    )
    assert not loaded_by(opened.format("hf://org/repo")) & {
        "obstore",
        "fsspec",
        "paramiko",
        "huggingface_hub",
    }
    assert not loaded_by(opened.format("file:///tmp")) & {"obstore", "fsspec", "urllib3"}
