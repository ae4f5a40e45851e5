"""`cache import`: a Hugging Face cache's files taken into ours by content, verified, without upstream."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from bdnfs.cache.admission import blob_for
from bdnfs.cache.adopting import ORIGIN
from bdnfs.cache.drafts import Draft, Sealed, digest_of
from bdnfs.cache.node import NodeCache, snapshot_id
from bdnfs.cache.rows import Record
from bdnfs.core.errors import BdnfsError, CacheError, IntegrityError, SpaceError, UpstreamError
from bdnfs.core.steps import reach
from bdnfs.core.units import MIB
from bdnfs.manifest.model import FileEntry, Manifest
from bdnfs.session.hub_cache import Download, Held

# What is hashed and not published yet an interruption costs; a commit for each small file costs time.
BATCH_FILES = 256
BATCH_BYTES = 256 * MIB
# What a disk reads in parallel is hashed in parallel.
HASHERS = min(8, len(os.sched_getaffinity(0)))
_SHOW_EVERY_S = 0.2

Outcome = Literal["reflink", "hardlink", "copy", "here", "damaged", "no room", "unreadable", "lost"]


class Result(NamedTuple):
    """What became of a file. error: why it did not come."""

    outcome: Outcome
    error: BdnfsError | None = None


class Wanted(NamedTuple):
    """One content to be taken in: the first file that has it, and what to check it against."""

    blob: bytes
    file: Held
    digests: tuple[str, ...]


@dataclass
class Import:
    """What an import has to do and has done: a view for progress.

    results: each download, and what became of each of its files, in their order
    """

    total_bytes: int
    files: int
    present_bytes: int = 0
    files_whole: int = 0
    state: str = "importing"
    tier_bytes: dict[str, int] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    results: list[tuple[Download, list[Result]]] = field(default_factory=list)

    @property
    def errors(self) -> list[BdnfsError]:
        return [result.error for _, results in self.results for result in results if result.error]


class Importer:
    """Takes downloads in, one after the other; what has come stays, however this ends. tenant: for whom."""

    def __init__(
        self,
        cache: NodeCache,
        downloads: Sequence[Download],
        show: Callable[[Import], None],
        tenant: str = "",
    ) -> None:
        self._cache = cache
        self._downloads = downloads
        self._show = show
        self._tenant = tenant
        sizes = [file.size for download in downloads for file in download.files]
        self._done = Import(sum(sizes), len(sizes))
        self._seen: set[bytes] = set()
        self._hashers = ThreadPoolExecutor(HASHERS, "import")
        self._counting = threading.Lock()
        self._stopped = threading.Event()

    def look(self) -> Import:
        """Say what `run` would do with each file; whether all of it fits is not looked at."""
        with self._cache.adopting.drafts() as directory:
            for download in self._downloads:
                self._done.results.append(
                    (download, [self._looked(directory, file) for file in download.files])
                )
        return self._done

    def run(self) -> Import:
        """Take in all that fits and is what its name says. Raises CacheError where the cache can't go on."""
        with ExitStack() as stack:
            directory = stack.enter_context(self._cache.adopting.drafts())
            stack.callback(self._hashers.shutdown, cancel_futures=True)
            stack.callback(self._stopped.set)
            self._show(self._done)
            for download in self._downloads:
                self._done.results.append((download, self._take(directory, download, stack)))
        self._done.state = "failed" if self._done.errors else "whole"
        self._show(self._done)
        return self._done

    def _looked(self, directory: Path, file: Held) -> Result:
        if file.size == 0:
            return Result("here")
        if file.digest is not None:
            with self._cache.read() as ledger:
                blob = blob_for(ledger, ORIGIN, _entry(file, file.digest), self._tenant)
            if blob in self._seen or self._cache.is_whole(blob):
                return Result("here")
            self._seen.add(blob)
        try:
            draft = Draft(file.place, directory / "draft", file.size)
        except UpstreamError as error:
            return Result("unreadable", error)
        draft.close()
        return Result(draft.how)

    def _take(self, directory: Path, download: Download, stack: ExitStack) -> list[Result]:
        unreadable: dict[str, Result] = {}
        named = list(self._named(download, unreadable))
        results: dict[bytes, Result] = {}
        blobs: Mapping[str, bytes] = {}
        if named:
            entries = tuple(entry for _, entry in named)
            source = download.source
            manifest = Manifest(f"import:{source.key}", ORIGIN, source.revision or "", entries, self._tenant)
            # To the very end: what is taken in later must not push this out again.
            stack.callback(self._cache.pin(snapshot_id(manifest)).close)
            record = self._cache.adopting.enter(manifest)
            blobs = {entry.path: blob for entry, blob in zip(entries, record.blobs, strict=True)}
            try:
                for batch in _batches(self._missing(named, record)):
                    self._take_batch(directory, record, batch, results)
            finally:
                self._cache.adopting.finish(record)
                reach("import:finished")
        return [
            unreadable.get(file.path) or results.get(blobs[file.path], Result("here"))
            for file in download.files
        ]

    def _named(self, download: Download, unreadable: dict[str, Result]) -> Iterator[tuple[Held, FileEntry]]:
        """Yield what is known of each file by its content; one that has no name is hashed for it."""
        for file in download.files:
            try:
                yield file, _entry(file, file.digest or digest_of(file.place, file.size))
            except UpstreamError as error:
                unreadable[file.path] = Result("unreadable", error)

    def _missing(self, named: list[tuple[Held, FileEntry]], record: Record) -> Iterator[Wanted]:
        seen: set[bytes] = set()
        for (file, entry), blob in zip(named, record.blobs, strict=True):
            if not blob or blob in seen or self._cache.is_whole(blob):
                self._came(file.size)
            else:
                seen.add(blob)
                # Which digest the Hub knows a nameless file by can't be told: it is found by either.
                digests = (file.digest,) if file.digest else (entry.digest or "sha256", "git-sha1")
                yield Wanted(blob, file, digests)

    def _take_batch(
        self, directory: Path, record: Record, batch: list[Wanted], results: dict[bytes, Result]
    ) -> None:
        adopting = self._cache.adopting
        with ExitStack() as stack:
            drafts: dict[bytes, Draft] = {}
            for wanted in batch:
                try:
                    draft = Draft(wanted.file.place, directory / wanted.blob.hex(), wanted.file.size)
                except UpstreamError as error:
                    results[wanted.blob] = Result("unreadable", error)
                    continue
                stack.callback(draft.close)
                drafts[wanted.blob] = draft
            reach("import:placed")
            stack.callback(adopting.discharge, list(drafts))
            charged = self._charge(record, drafts, results)
            self._seal_and_publish(record, [each for each in batch if each.blob in charged], drafts, results)

    def _seal_and_publish(
        self,
        record: Record,
        batch: list[Wanted],
        drafts: Mapping[bytes, Draft],
        results: dict[bytes, Result],
    ) -> None:
        """Hash in threads (one core does no more than 0.2 to 2 GB/s of SHA-256), publish what is done."""
        under_way = {
            self._hashers.submit(drafts[each.blob].seal, each.digests, self._moved): each.blob
            for each in batch
        }
        pending, ready = set(under_way), dict[bytes, Sealed]()
        while pending:
            done, pending = wait(pending, _SHOW_EVERY_S)
            for future in done:
                blob = under_way[future]
                try:
                    ready[blob] = future.result()
                    results[blob] = Result(drafts[blob].how)
                except BdnfsError as error:
                    results[blob] = Result(_outcome(error), error)
            if ready and (not pending or sum(each.size for each in ready.values()) >= BATCH_BYTES):
                lost = self._cache.adopting.publish(record, ready)
                results.update((blob, Result("lost", _lost(drafts[blob]))) for blob in lost)
                self._done.files_whole += len(ready) - len(lost)
                ready = {}
            self._show(self._done)

    def _charge(
        self, record: Record, drafts: dict[bytes, Draft], results: dict[bytes, Result]
    ) -> frozenset[bytes]:
        """Make room for the drafts, for all of them at once or for each that fits; return those that do."""
        adopting = self._cache.adopting

        def charge(names: Sequence[bytes]) -> None:
            written = (drafts[name].size for name in names if drafts[name].how == "copy")
            adopting.charge(record, {name: drafts[name].size for name in names}, sum(written))

        if not drafts:
            return frozenset()
        try:
            charge(list(drafts))
            return frozenset(drafts)
        except SpaceError:
            charged = set()
            for name, draft in drafts.items():
                try:
                    charge([name])
                    charged.add(name)
                except SpaceError as error:
                    results[name] = Result("no room", SpaceError(f"{draft.source}: {error}"))
            return frozenset(charged)

    def _moved(self, size_bytes: int) -> None:
        if self._stopped.is_set():
            raise CacheError("the import was interrupted")
        with self._counting:
            self._done.present_bytes += size_bytes
            self._done.tier_bytes["disk"] = self._done.tier_bytes.get("disk", 0) + size_bytes

    def _came(self, size_bytes: int) -> None:
        self._done.present_bytes += size_bytes
        self._done.files_whole += 1


def _entry(file: Held, digest: str) -> FileEntry:
    return FileEntry(file.path, file.size, digest, identity=digest.partition(":")[2])


def _batches(wanted: Iterator[Wanted]) -> Iterator[list[Wanted]]:
    batch: list[Wanted] = []
    size_bytes = 0
    for item in wanted:
        full = len(batch) >= HASHERS and size_bytes + item.file.size > BATCH_BYTES
        if full or len(batch) == BATCH_FILES:
            yield batch
            batch, size_bytes = [], 0
        batch.append(item)
        size_bytes += item.file.size
    if batch:
        yield batch


def _outcome(error: BdnfsError) -> Outcome:
    if isinstance(error, IntegrityError):
        return "damaged"
    return "no room" if isinstance(error, SpaceError) else "unreadable"


def _lost(draft: Draft) -> CacheError:
    return CacheError(
        f"{draft.source}: was evicted, or is being fetched by a mount, while it was taken in; import again"
    )
