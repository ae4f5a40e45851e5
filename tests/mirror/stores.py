"""The stores a mirror may lie in, each before a real server, and what every test needs of them."""

import base64
import itertools
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from bdnfs.mirror.opening import open_store
from bdnfs.mirror.store import Store
from bdnfs.spec.config import Secret, UpstreamConfig
from tests.contract.azurite import AzureSite
from tests.contract.gcs import GcsSite
from tests.contract.servers import S3Site

# Long enough for a busy machine to answer in, short enough to be waited for.
STALL_S = 2.0


class Stores(ABC):
    """One kind of store and the server behind it.

    atomic: of several that put what is absent at once, exactly one does
    remote: there is a server, which may be gone, slow or want keys
    """

    kind = ""
    atomic = True
    remote = True

    def __init__(self) -> None:
        self._count = itertools.count()
        self.port = self.reached = 0

    @abstractmethod
    def fresh_url(self) -> str:
        """Return the URL of a store that nothing lies in yet."""

    @abstractmethod
    def unknown_url(self) -> str:
        """Return the URL of a bucket, container or directory that is not there."""

    def upstream(self, **fields: Any) -> UpstreamConfig:
        """Return how the server is reached."""
        return UpstreamConfig(**fields)

    def open_wrong(self, url: str) -> Store:
        """Open a store with keys that the server refuses."""
        raise NotImplementedError

    @property
    def secret(self) -> Secret | None:
        return None

    def open(self, url: str, **fields: Any) -> Store:
        return open_store(url, self.upstream(**fields), self.secret)

    def fresh(self, **fields: Any) -> Store:
        """Return a store that nothing lies in yet."""
        return self.open(self.fresh_url(), **fields)


class DirectoryStores(Stores):
    kind = "directory"
    remote = False

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory

    def fresh_url(self) -> str:
        return str(self._directory / f"mirror-{next(self._count)}")

    def unknown_url(self) -> str:
        return str(self._directory / "gone" / "mirror")


class S3Stores(Stores):
    kind = "s3"
    atomic = False  # moto looks, then writes

    def __init__(self) -> None:
        super().__init__()
        site = S3Site()
        self.argv, self.port, self.client = site.argv, site.port, site.client
        self.reached = site.port

    def fresh_url(self) -> str:
        number = next(self._count)
        if number == 0:
            self.client().create_bucket(Bucket="mirrors")
        return f"s3://mirrors/of/{number}" if number % 2 else self._bucket_url(number)

    def _bucket_url(self, number: int) -> str:
        self.client().create_bucket(Bucket=f"mirror-{number}")
        return f"s3://mirror-{number}"

    def unknown_url(self) -> str:
        return "s3://no-such-bucket/prefix"

    def upstream(self, **fields: Any) -> UpstreamConfig:
        aws = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.reached}",
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "hidden-key",
        }
        return UpstreamConfig(**{"aws": aws, **fields})


class AzureStores(Stores):
    kind = "azure"

    def __init__(self) -> None:
        super().__init__()
        self.site = AzureSite()
        self.argv, self.port, self.reached = self.site.argv, self.site.port, self.site.port
        self._account = self.site.source("x").rest.partition("/")[0]

    def fresh_url(self) -> str:
        number = next(self._count)
        container, below = ("mirrors", f"/of/{number}") if number % 2 else (f"mirror-{number}", "")
        self.site.make(container)
        return f"azure://{self._account}/{container}{below}"

    def unknown_url(self) -> str:
        return f"azure://{self._account}/no-such-container/prefix"

    def upstream(self, **fields: Any) -> UpstreamConfig:
        self.site.reached = self.reached
        return self.site.upstream(**fields)

    def open_wrong(self, url: str) -> Store:
        key = base64.b64encode(b"hidden-key, but another").decode()
        return open_store(url, self.upstream(), Secret(json.dumps({"account_key": key})))


class GcsStores(Stores):
    kind = "gs"
    atomic = False  # the emulator knows no conditions

    def __init__(self) -> None:
        super().__init__()
        self.site = GcsSite()
        self.argv, self.port, self.reached = self.site.argv, self.site.port, self.site.port

    def fresh_url(self) -> str:
        number = next(self._count)
        bucket, below = ("mirrors", f"/of/{number}") if number % 2 else (f"mirror-{number}", "")
        self.site.make(bucket)
        return f"gs://{bucket}{below}"

    def unknown_url(self) -> str:
        return "gs://no-such-bucket/prefix"

    def upstream(self, **fields: Any) -> UpstreamConfig:
        self.site.reached = self.reached
        return self.site.upstream(**fields)
