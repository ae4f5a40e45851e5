"""Checkpoints in a bucket, by obstore: S3, what speaks its API, Azure."""

import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import obstore
from blake3 import blake3
from obstore import exceptions as foreign
from obstore.store import AzureStore, S3Store

from trainer.errors import ConfigError
from trainer.storage.checkpoint_reading import Reading
from trainer.storage.checkpoint_store import (
    ChangedFileError,
    Stop,
    StoreConfig,
    Stored,
    aws_settings,
    azure_settings,
)
from trainer.storage.errors import DamagedError, StoreAwayError, StoreError

T = TypeVar("T")
# One request up to this; above, parts of it, four at once: 64 MiB in memory for each file under way.
_PART_BYTES = 16 << 20
_PARTS_AT_ONCE = 4
_PARTS_MAX = 9_000  # S3 takes 10,000
_RANGE_BYTES = 32 << 20
# A part on a line that gives it 100 kB/s.
_REQUEST_TIMEOUT = timedelta(seconds=180)
# A part of a large file is tried again here: to begin the file anew is for what lasts longer.
_RETRIES: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}
_FOREIGN = (foreign.BaseError, OSError, ValueError)
_STATUS = re.compile(r"status code: ([0-9]{3})")
# Letters alone: whatever was shown to a server that says it back has digits.
_CODE = re.compile(r"<Code>([A-Za-z]{1,48})</Code>")
_PASSING_CODES = ("RequestTimeout", "SlowDown", "OperationAborted", "InternalError", "ExpiredToken")


def open_objects(scheme: str, rest: str, config: StoreConfig) -> "ObjectsStore":
    """Return the store of `bucket/prefix` (azure: `account/container/prefix`)."""
    account = ""
    if scheme == "azure":
        account, _, rest = rest.partition("/")
    bucket, _, prefix = rest.partition("/")
    if not bucket or (scheme == "azure" and not account):
        raise ConfigError(f"checkpoints: {config.url!r} names no bucket")
    prefix = prefix.strip("/")
    source = f"{scheme}://" + "/".join(filter(None, (account, bucket, prefix)))
    try:
        opened = _azure(account, bucket, config) if scheme == "azure" else _s3(scheme, bucket, config)
    except _FOREIGN as error:
        raise ConfigError(
            f"checkpoints: {source}: the settings can't be used ({type(error).__name__}); check the secret, the "
            "endpoint and the region"
        ) from None
    return ObjectsStore(opened, prefix, source)


def _client(endpoint: str) -> Any:
    return {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=10),
        "timeout": _REQUEST_TIMEOUT,
        "user_agent": "bdnfs-trainer",
    }


def _s3(scheme: str, bucket: str, config: StoreConfig) -> S3Store:
    found = aws_settings(scheme, config)
    account, _, name = bucket.partition(".")
    rule = {"s3": "", "r2": f"https://{account}.r2.cloudflarestorage.com", "cw": "https://cwobject.com"}[
        scheme
    ]
    endpoint = found.get("endpoint", rule).rstrip("/")
    settings: dict[str, Any] = {"region": "auto" if scheme == "r2" else found.get("region", "us-east-1")}
    if "key_id" in found:
        settings |= {"access_key_id": found["key_id"], "secret_access_key": found.get("secret_key", "")}
        if "token" in found:
            settings["session_token"] = found["token"]
    if scheme == "r2":
        bucket = name
    # CoreWeave wants the bucket in the host's name, where that has one.
    if scheme == "cw" and endpoint == rule:
        endpoint = endpoint.replace("://", f"://{bucket}.")
        settings["virtual_hosted_style_request"] = True
    if endpoint:
        settings["endpoint"] = endpoint
    return S3Store(bucket, config=settings, client_options=_client(endpoint), retry_config=_RETRIES)  # type: ignore[arg-type]


def _azure(account: str, container: str, config: StoreConfig) -> AzureStore:
    settings: dict[str, Any] = {"account_name": account, **azure_settings(config)}
    endpoint = config.environment.get("AZURE_STORAGE_ENDPOINT", "")
    if endpoint:
        settings["endpoint"] = endpoint
    return AzureStore(container, config=settings, client_options=_client(endpoint), retry_config=_RETRIES)  # type: ignore[arg-type]


class ObjectsStore:
    """The objects of a bucket below a prefix (empty: all of it)."""

    def __init__(self, opened: S3Store | AzureStore, prefix: str, source: str) -> None:
        self._opened = opened
        self._above = f"{prefix}/" if prefix else ""
        self.name = self.source = source

    def put_file(self, key: str, path: Path, stopped: Stop) -> str:
        reading = Reading(path, stopped)
        size = reading.size_bytes
        try:
            if size <= _PART_BYTES:
                data = b"".join(reading.pieces(_PART_BYTES))
                self.put(key, data)
            else:
                part = max(_PART_BYTES, -(-size // _PARTS_MAX))
                self._call(
                    f"uploading {key} to {self.name}",
                    lambda: obstore.put(
                        self._opened,
                        self._above + key,
                        reading.pieces(part),
                        use_multipart=True,
                        chunk_size=part,
                        max_concurrency=_PARTS_AT_ONCE,
                    ),
                )
            return reading.digest
        finally:
            reading.close()

    def get_file(self, key: str, path: Path, size_bytes: int) -> str:
        doing, hasher = f"reading {key} of {self.name}", blake3()
        with path.open("xb") as file:
            for start in range(0, size_bytes, _RANGE_BYTES):
                end = min(start + _RANGE_BYTES, size_bytes)
                piece = self._range(doing, key, start, end)
                if len(piece) != end - start:
                    raise DamagedError(
                        f"{doing}: it is shorter than the {size_bytes:,} bytes that were uploaded"
                    )
                hasher.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        return str(hasher.hexdigest())

    def _range(self, doing: str, key: str, start: int, end: int) -> bytes:
        return self._call(
            doing, lambda: bytes(obstore.get_range(self._opened, self._above + key, start=start, end=end))
        )

    def put(self, key: str, data: bytes) -> None:
        self._call(
            f"uploading {key} to {self.name}",
            lambda: obstore.put(self._opened, self._above + key, data, use_multipart=False),
        )

    def get(self, key: str) -> bytes | None:
        try:
            return self._call(
                f"reading {key} of {self.name}",
                lambda: bytes(obstore.get(self._opened, self._above + key).bytes()),
            )
        except _AbsentError:
            return None

    def list(self, prefix: str) -> Iterator[Stored]:
        pages = self._call(
            f"listing {self.name}",
            lambda: list(obstore.list(self._opened, (self._above + prefix).rstrip("/"))),
        )
        for page in pages:
            for meta in page:
                key = meta["path"].removeprefix(self._above)
                if key.startswith(prefix):
                    yield Stored(key, meta["size"])

    def delete(self, prefix: str) -> None:
        keys = [self._above + stored.key for stored in self.list(prefix)]
        for key in keys:
            try:
                self._call(f"deleting from {self.name}", lambda key=key: obstore.delete(self._opened, key))  # type: ignore[misc]
            except _AbsentError:
                continue

    def _call(self, doing: str, act: Callable[[], T]) -> T:
        try:
            return act()
        except ChangedFileError:
            raise
        except _FOREIGN as error:
            raise _meaning(doing, error) from None


class _AbsentError(StoreError):
    """There is no such object."""


def _meaning(doing: str, error: Exception) -> StoreError:
    """Return what obstore's error means; its text is not passed on, it may hold what a server echoed."""
    text = str(error)
    status_found, code_found = _STATUS.search(text), _CODE.search(text)
    status, code = int(status_found[1]) if status_found else 0, code_found[1] if code_found else ""
    said = f"{doing}: the store answered {status} {code}".rstrip()
    if code in _PASSING_CODES:
        return StoreAwayError(f"{said}; try again later")
    if isinstance(error, foreign.PermissionDeniedError | foreign.UnauthenticatedError) or status in (
        401,
        403,
    ):
        shown = f" ({code})" if code else ""
        return StoreError(f"{doing}: the store refused the credentials{shown}; check them")
    if isinstance(error, foreign.NotFoundError | FileNotFoundError) or status == 404:
        what = "bucket" if code in ("NoSuchBucket", "ContainerNotFound") else "object"
        return _AbsentError(f"{doing}: there is no such {what}; check the URL of `checkpoints`")
    if isinstance(error, foreign.InvalidPathError):
        return StoreError(f"{doing}: its name can't be a key there; rename it")
    if status in (408, 429) or status >= 500:
        return StoreAwayError(f"{said}; try again later")
    if status:
        return StoreError(f"{said}, which is of no use here; check the URL of `checkpoints`")
    kind = re.search(r"kind: (Connect|Timeout)\b", text)
    reasons = {"Connect": "the store can't be reached", "Timeout": "the store gave no answer in time"}
    reason = reasons[kind[1]] if kind else "the store broke off in the middle of its answer"
    return StoreAwayError(f"{doing}: {reason}; try again later")
