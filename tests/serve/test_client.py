"""The official client, unmodified, with only its two base URLs overridden: every byte, by every kind of name."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from baseten.bdn.volumes import VolumeAPIError, VolumeClient, VolumeEntryKind

from bdnfs.mirror.directory import DirectoryStore
from bdnfs.mirror.store import Store
from bdnfs.mirror.versions import VersionRow
from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, forker, hub, nodes, served
from tests.commands.node import Node, until
from tests.mirror.conftest import started
from tests.serve.served import FILES, KEYS, Served, fill

__all__ = ["forker", "hub", "nodes", "served"]

Serve = Callable[..., Served]
OLDER = {**FILES, "config.json": b"the first\n"}


class Place:
    """A mirror with two versions of one volume, and how a service reaches it."""

    def __init__(self, store: Store, config: dict[str, Any]) -> None:
        self.older: VersionRow = fill(store, "default", "tiny", OLDER, "one", "v1")
        self.newer: VersionRow = fill(store, "default", "tiny", FILES, "two", "main")
        self.config = config


@pytest.fixture(scope="module", params=["directory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The mirror in every kind of store."""
    with started(request.param, tmp_path_factory.mktemp(request.param)) as stores:
        url = stores.fresh_url()
        store = stores.open(url)
        environment = stores.upstream().aws if stores.remote else {}
        yield Place(store, {"mirror": url, "environment": environment})
        store.close()


@pytest.fixture(scope="module")
def client(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VolumeClient]:
    service = Served(tmp_path_factory.mktemp("client") / "service", **place.config)
    with opened(service) as volumes:
        yield volumes
    service.close()


def opened(service: Served, key: str = "any") -> VolumeClient:
    return VolumeClient(api_key=key, base_url_override=service.url, bdn_endpoint_override=service.url)


def held(directory: Path) -> dict[str, bytes]:
    """Return what a directory holds."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def test_pulls_by_every_name(client: VolumeClient, place: Place, tmp_path: Path) -> None:
    older, newer = place.older, place.newer
    for number, (ref, row, files) in enumerate(
        (
            ("bdn:weights/tiny", newer, FILES),
            ("bdn:weights/tiny:main", newer, FILES),
            ("bdn:weights/tiny:v1", older, OLDER),
            (f"bdn:weights/tiny@{older.digest}", older, OLDER),
            (f"bdn:weights/tiny@{newer.digest.removeprefix('b3:')[:12]}", newer, FILES),
        )
    ):
        result = client.pull(ref, tmp_path / str(number))
        assert held(tmp_path / str(number)) == files
        assert str(result.version_ref) == f"bdn:weights/tiny@{row.digest}"
        assert result.bytes_written == sum(map(len, files.values()))


def test_fetches_manifests(client: VolumeClient, place: Place) -> None:
    manifest = client.fetch_manifest("bdn:Weights/Tiny:main")
    assert manifest.total_size == sum(map(len, FILES.values()))
    found = {entry.path: entry.size for entry in manifest.entries if entry.kind is VolumeEntryKind.FILE}
    assert found == {f"/{path}": len(content) for path, content in FILES.items()}
    below = client.fetch_manifest("bdn:weights/tiny/data")
    assert {entry.path for entry in below.entries} == {"/data", "/data/empty.txt", "/data/a b+c%41.txt"}
    assert below.entry_count == manifest.entry_count


def test_pulls_by_path(client: VolumeClient, tmp_path: Path) -> None:
    client.pull("bdn:weights/tiny/data", tmp_path / "data")
    assert held(tmp_path / "data") == {path: FILES[path] for path in FILES if path.startswith("data/")}
    client.pull("bdn:weights/tiny:v1/config.json", tmp_path / "one")
    assert held(tmp_path / "one") == {"config.json": OLDER["config.json"]}
    client.pull("bdn:weights/tiny", tmp_path / "some", include=["model.safetensors"])
    assert held(tmp_path / "some") == {"model.safetensors": FILES["model.safetensors"]}


def test_what_is_not_there(client: VolumeClient) -> None:
    for ref in ("bdn:weights/other", "bdn:weights/tiny:other", f"bdn:weights/tiny@{'0' * 12}"):
        with pytest.raises(VolumeAPIError) as caught:
            client.fetch_manifest(ref)
        assert (caught.value.status_code, caught.value.reason) == (404, "NOT_FOUND")
    with pytest.raises(VolumeAPIError) as caught:
        client.fetch_manifest("bdn:weights/tiny@abc")
    assert caught.value.status_code == 400


def test_what_bdnfs_mirrored_from_a_hub(
    nodes: Callable[..., Node], hub: HubServer, serve: Serve, tmp_path: Path
) -> None:
    node = nodes()
    node.configure(mirror=str(tmp_path / "mirror"))
    (source,) = node.run("mirror", "hf://acme/big@main", "--json").json["sources"]
    volume = source["ref"].partition("@")[0]
    service = serve(mirror=str(tmp_path / "mirror"))
    for ref in (source["ref"], volume, f"{volume}:main", f"{source['ref'][: len(volume) + 16]}"):
        with opened(service) as volumes:
            volumes.pull(ref, tmp_path / "pulled" / ref.replace("/", "-"))
        assert held(tmp_path / "pulled" / ref.replace("/", "-")) == BIG


def test_credentials_that_end_soon_are_asked_for_again(serve: Serve, tmp_path: Path) -> None:
    fill(DirectoryStore(str(tmp_path / "mirror")), "acme", "tiny", FILES)
    service = serve(
        mirror=str(tmp_path / "mirror"), serve={"keys": {"acme": "acme_key"}, "credentials_for": "10s"}
    )
    with opened(service, KEYS["acme"]) as volumes:
        volumes.pull("bdn:weights/tiny", tmp_path / "pulled")
    assert held(tmp_path / "pulled") == FILES
    # Once for the version, then before each read: manifest, chunkmap, and four chunks.
    until(lambda: service.err.count("/v1/volumes/resolve 200") >= 1 + 6, "a line for each")
    assert service.err.count("/v1/volumes/resolve 200") == 1 + 6


def test_tenants_see_their_own(serve: Serve, tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path / "mirror"))
    theirs = {"config.json": b"another's\n"}
    fill(store, "acme", "tiny", FILES)
    fill(store, "rival", "tiny", theirs)
    fill(store, "rival", "secret", theirs)
    service = serve(mirror=str(tmp_path / "mirror"), serve={"keys": {"acme": "one", "rival": "two"}})
    with opened(service, KEYS["acme"]) as volumes:
        volumes.pull("bdn:weights/tiny", tmp_path / "mine")
        with pytest.raises(VolumeAPIError, match="404"):
            volumes.fetch_manifest("bdn:weights/secret")
    with opened(service, KEYS["rival"]) as volumes:
        volumes.pull("bdn:weights/tiny", tmp_path / "theirs")
    assert held(tmp_path / "mine") == FILES
    assert held(tmp_path / "theirs") == theirs
    with opened(service, "a key that nobody has") as volumes, pytest.raises(VolumeAPIError, match="401"):
        volumes.fetch_manifest("bdn:weights/tiny")
    (service.place / "secrets" / "one").write_text("another PLANTED key, for keys rotate")
    with opened(service, KEYS["acme"]) as volumes, pytest.raises(VolumeAPIError, match="401"):
        volumes.fetch_manifest("bdn:weights/tiny")
    with opened(service, "another PLANTED key, for keys rotate") as volumes:
        assert volumes.fetch_manifest("bdn:weights/tiny").entry_count == 5
