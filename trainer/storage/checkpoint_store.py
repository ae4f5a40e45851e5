"""Where checkpoints are kept: a bucket, a directory, or whatever fsspec opens; each one behind the same few calls."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from trainer.errors import ConfigError

Stop = Callable[[], bool]
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """url: s3://bucket/prefix, gs://, azure://account/container/prefix, r2://account.bucket/, cw://bucket/,
    file:///directory or the directory itself, or another that fsspec opens: what bdnfs takes as a source, too.

    secret:      the credential's text, in the form bdnfs documents for the scheme; None: the environment's
    secret_name: what it is called; load_sources puts it into the sources' auth
    environment: AWS_…, R2_ENDPOINT_URL, … where there is no secret
    """

    url: str
    secret: str | None = field(default=None, repr=False)
    secret_name: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


class Stored(NamedTuple):
    key: str
    size_bytes: int


class CheckpointStore(Protocol):
    """Objects below one prefix; keys are relative, `/`-separated. Calls block, and end by themselves.

    Raises StoreAwayError for what may pass, StoreError for what will not.
    name: as errors and logs say it, without credentials. source: what bdnfs calls the prefix.
    """

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str: ...

    def put_file(self, key: str, path: Path, stopped: Stop) -> str:
        """Upload a file; return the BLAKE3 of what was sent (64 hex digits). Others see all of it or nothing.

        Raises ChangedFileError, and shows nothing, where the file changes meanwhile, or stopped() becomes true.
        """

    def get_file(self, key: str, path: Path, size_bytes: int) -> str:
        """Write an object of size_bytes to path, a new file, synced; return its BLAKE3."""

    def put(self, key: str, data: bytes) -> None:
        """Write a small object."""

    def get(self, key: str) -> bytes | None:
        """Return a small object; None where there is none."""

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield what lies below prefix, which ends with `/`."""

    def delete(self, prefix: str) -> None:
        """Delete what lies below prefix, which ends with `/`."""


class ChangedFileError(Exception):
    """A file is not what it was when its upload began, or the upload is no longer wanted."""


def open_checkpoint_store(config: StoreConfig) -> CheckpointStore:
    """Return the store a URL names; asks it nothing yet. Raises ConfigError for a URL or a secret of no use."""
    url = f"file://{config.url}" if config.url.startswith("/") else config.url
    match = _SCHEME.fullmatch(url)
    if match is None:
        raise ConfigError(
            f"checkpoints: {config.url!r} is no store; write s3://bucket/prefix or /a/directory"
        )
    scheme, rest = match[1], match[2]
    if urlsplit(url).username or urlsplit(url).password:
        raise ConfigError("checkpoints: the URL holds credentials; put them into a secret and name that")
    # Late: each of them takes its library with it.
    if scheme == "file":
        from trainer.storage.checkpoint_directory import DirectoryStore

        if not rest.startswith("/"):
            raise ConfigError(f"checkpoints: {config.url!r} is no absolute path; write file:///directory")
        return DirectoryStore(Path(os.path.normpath(rest)))
    if scheme in ("s3", "r2", "cw", "azure"):
        from trainer.storage.checkpoint_objects import open_objects

        return open_objects(scheme, rest, config)
    from trainer.storage.checkpoint_fsspec import FsspecStore

    return FsspecStore(url, fsspec_options(scheme, config))


def fsspec_options(scheme: str, config: StoreConfig) -> dict[str, Any]:
    """Return what fsspec's filesystem is opened with: gs takes a service account's key, others JSON or a password."""
    if config.secret is None:
        return {}
    try:
        found = json.loads(config.secret)
    except ValueError:
        found = None
    if scheme == "gs":
        if not isinstance(found, dict):
            raise ConfigError(
                f"the secret {config.secret_name} is no service account's JSON key, as gs:// takes"
            )
        return {"token": found}
    return found if isinstance(found, dict) else {"password": config.secret}


def aws_settings(scheme: str, config: StoreConfig) -> dict[str, str]:
    """Return key_id, secret_key, token, region, endpoint, as far as the secret (or else the environment) says them.

    Raises ConfigError, without the content, for a secret that is not the documented JSON.
    """
    setting = {"s3": "AWS_ENDPOINT_URL", "r2": "R2_ENDPOINT_URL", "cw": "CW_ENDPOINT_URL"}[scheme]
    given = config.environment
    found = {
        "endpoint": given.get(f"{setting}_S3") or given.get(setting, ""),
        "region": given.get("AWS_REGION") or given.get("AWS_DEFAULT_REGION", ""),
    }
    names = {
        "key_id": "aws_access_key_id",
        "secret_key": "aws_secret_access_key",
        "token": "aws_session_token",
    }
    if config.secret is None:
        found |= {name: given.get(variable.upper(), "") for name, variable in names.items()}
    else:
        names |= {"region": "aws_region", "endpoint": "aws_endpoint_url"}
        content = _secret_object(config)
        for field_name in ("aws_access_key_id", "aws_secret_access_key"):
            if not content.get(field_name):
                unprefixed = field_name.removeprefix("aws_")
                also = f"; it holds {unprefixed}: add aws_ to the names" if unprefixed in content else ""
                raise ConfigError(f"the secret {config.secret_name} has no {field_name}{also}")
        found |= {name: content[key] for name, key in names.items() if content.get(key)}
    return {name: value for name, value in found.items() if value}


def azure_settings(config: StoreConfig) -> dict[str, str]:
    """Return obstore's names for the account's key or signature; {} where the environment has them."""
    if config.secret is None:
        return {}
    content = _secret_object(config)
    found = {name: content[name] for name in ("account_key", "sas_token") if content.get(name)}
    if not found:
        raise ConfigError(f"the secret {config.secret_name} has neither account_key nor sas_token")
    return found


def _secret_object(config: StoreConfig) -> dict[str, str]:
    try:
        content = json.loads(config.secret or "")
    except ValueError:
        content = None
    if not isinstance(content, dict) or not all(isinstance(each, str) for each in content.values()):
        raise ConfigError(
            f"the secret {config.secret_name} is not JSON with text in it, as docs/credentials.md shows"
        )
    return content
