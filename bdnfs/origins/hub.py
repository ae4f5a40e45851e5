"""The Hub (huggingface.co, or HF_ENDPOINT): models and datasets at a commit, by plain HTTP."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

import msgspec

from bdnfs.core.errors import UNREADABLE, ChangedError, UnavailableError, UpstreamError
from bdnfs.manifest.model import FileEntry
from bdnfs.manifest.sizes import check_size
from bdnfs.origins.answers import shown
from bdnfs.origins.credentials import Credential
from bdnfs.origins.http import HttpClient, HttpConfig, origin_of
from bdnfs.origins.hub_api import DEFAULT_REVISION, HubRepository
from bdnfs.origins.places import Places
from bdnfs.origins.reply import Reply

# The Hub answers 1000 entries a page; 10 million files are more than any repository may hold.
PAGES_MAX = 10_000
FILES_MAX = 10_000_000
_ANSWER_BYTES_MAX = 64 << 20
_GIT_OID = re.compile("[0-9a-f]{40}", re.ASCII)
_DIGEST = re.compile("git-sha1:[0-9a-f]{40}|sha256:[0-9a-f]{64}", re.ASCII)
# Each link is looked at once, however many there are.
_LINK = re.compile(r"<([^<>]*)>([^<]*)")
_IS_NEXT = re.compile(r'\brel="?next"?')


class HubOrigin:
    """One repository of a Hub.

    credential: the Authorization header's value, sent to the endpoint only, never to where it redirects
    """

    def __init__(
        self, endpoint: str, repo: str, kind: str, credential: Credential[str] | None, http: HttpConfig
    ) -> None:
        self._repository = HubRepository(endpoint, repo, kind)
        self._client = HttpClient(http)
        self._home = origin_of(self._repository.endpoint)
        self._authorization = (self._home, credential) if credential else None
        self._places = Places(self._client, self._authorization, http.stall_s)

    @property
    def name(self) -> str:
        return f"{self._repository.endpoint} {self._repository.name}"

    def resolve(self, revision: str | None) -> str:
        """Return the commit that revision (None: main) names now."""
        revision = revision or DEFAULT_REVISION
        doing = f"resolving {self._repository.name}@{revision}"
        info, _ = self._json(self._repository.revision_url(revision), doing, revision)
        return self._repository.commit_in(info, revision)

    def list(self, revision: str | None) -> Iterator[FileEntry]:
        """Yield every file at the commit revision, which resolve has returned."""
        commit = revision or self.resolve(None)
        doing = f"listing {self._repository.name}@{commit[:12]}"
        url: str | None = self._repository.tree_url(commit)
        seen: set[str] = set()
        count = 0
        for _ in range(PAGES_MAX):
            page, url = self._json(url, doing, commit)
            for place, entry in enumerate(self._entries(page, doing)):
                if not count:
                    self._refuse_gated(commit, entry)
                if place == 0:
                    _refuse_circle(entry.path, seen, doing)
                count += 1
                yield entry
            if url is None:
                return
            _refuse_circle(url, seen, doing)
            if count > FILES_MAX:
                break
        raise UpstreamError(
            f"{doing}: the listing has more than {PAGES_MAX} pages or {FILES_MAX} files; no repository is that "
            "large. Check that HF_ENDPOINT is a Hub"
        )

    def read(self, revision: str | None, entry: FileEntry, start: int, into: memoryview) -> None:
        """Fill `into` from byte start of entry, at the commit revision."""
        if not into:
            return
        stop = start + len(into)
        with self._open(revision, entry, start, stop) as reply:
            reply.expect_range(start, stop, entry.size)
            reply.read_into(into)

    def stream(self, revision: str | None, entry: FileEntry) -> Iterator[memoryview]:
        """Yield the whole of entry in one request."""
        if not entry.size:
            return
        with self._open(revision, entry, 0, entry.size) as reply:
            reply.expect_range(0, entry.size, entry.size)
            yield from reply.pieces(entry.size)

    def close(self) -> None:
        self._client.close()

    def _refuse_gated(self, commit: str, entry: FileEntry) -> None:
        """Raise CredentialsError now if files are refused: the Hub lists a gated repository to everyone."""
        url, doing = self._repository.file_url(commit, entry.path), f"opening {self._repository.name}"
        try:
            reply = self._client.open("HEAD", url, doing, authorization=self._authorization, follow=False)
        except UnavailableError:
            # Whoever reads will see.
            return
        with reply:
            if reply.headers.get("X-Error-Code") == "GatedRepo":
                raise self._refusal(reply, doing, commit)

    def _open(self, revision: str | None, entry: FileEntry, start: int, stop: int) -> Reply:
        commit = revision or DEFAULT_REVISION
        doing = f"reading {entry.path} of {self._repository.name}@{commit[:12]}"
        url = self._repository.file_url(commit, entry.path)
        reply = self._places.open(url, doing, {"Range": f"bytes={start}-{stop - 1}"})
        try:
            for hop in reply.hops:
                self._check_version(doing, commit, entry, hop.url, hop.headers)
            self._check_version(doing, commit, entry, reply.url, reply.headers)
            if reply.status >= 400 and reply.status not in (412, 416):
                raise self._refusal(reply, doing, commit)
        except BaseException:
            reply.close()
            raise
        return reply

    def _check_version(self, doing: str, commit: str, entry: FileEntry, url: str, headers: Any) -> None:
        """Raise ChangedError where the Hub itself says that this is another commit or file version."""
        if origin_of(url) != self._home:
            return
        found_commit = headers.get("X-Repo-Commit")
        etag = (headers.get("X-Linked-ETag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
        size = headers.get("X-Linked-Size")
        wanted = {entry.identity, (entry.digest or "").rpartition(":")[2]}
        found = None
        if found_commit and re.fullmatch("[0-9a-f]{40}", commit) and found_commit != commit:
            # In our words where it is no commit: the header may say anything.
            found = f"commit {found_commit[:12]}" if _GIT_OID.fullmatch(found_commit) else "another commit"
        elif re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", etag) and etag not in wanted:
            found = f"version {etag[:12]}"
        elif size and size != str(entry.size):
            found = (
                f"a file of {size} bytes" if re.fullmatch("[0-9]{1,18}", size, re.ASCII) else "another size"
            )
        if found:
            raise ChangedError(
                f"{doing}: the Hub answers {found} for a file pinned as {entry.identity[:12]} of "
                f"{entry.size} bytes; "
                "it changed upstream. Mount it again for the new version"
            )

    def _entries(self, page: Any, doing: str) -> Iterator[FileEntry]:
        try:
            for item in page:
                if item["type"] == "file":
                    entry = _entry(item)
                    check_size(entry.size, entry.path, doing)
                    yield entry
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UpstreamError(
                f"{doing}: {self._repository.endpoint} answered something else than a listing; "
                "check that HF_ENDPOINT is a Hub"
            ) from None

    def _json(self, url: str | None, doing: str, revision: str) -> tuple[Any, str | None]:
        """Return an answer of the API and the URL of its next page."""
        assert url is not None
        with self._client.open("GET", url, doing, authorization=self._authorization) as reply:
            if reply.status != 200:
                raise self._refusal(reply, doing, revision)
            content = reply.content(_ANSWER_BYTES_MAX)
            following = _next_page(reply.headers.get("Link") or "")
        try:
            answer = msgspec.json.decode(content)
        except UNREADABLE:
            answer = None
        if answer is None:
            raise UpstreamError(
                f"{doing}: {self._repository.endpoint} answered no JSON; check that HF_ENDPOINT is a Hub"
            )
        if following is None:
            return answer, None
        try:
            target = urljoin(url, following)
            elsewhere = origin_of(target) != origin_of(url)
        except ValueError:
            raise UpstreamError(
                f"{doing}: the listing goes on at a malformed URL; check that HF_ENDPOINT is a Hub"
            ) from None
        if elsewhere:
            raise UpstreamError(
                f"{doing}: the listing goes on at another host, {shown(origin_of(target))}; not followed"
            )
        return answer, target

    def _refusal(self, reply: Reply, doing: str, revision: str) -> Exception:
        if origin_of(reply.url) != self._home:
            return reply.error
        return self._repository.refusal(
            doing,
            reply.url,
            reply.status,
            reply.headers,
            revision,
            with_token=self._authorization is not None,
        )


def _next_page(link: str) -> str | None:
    """Return what a Link header (RFC 8288) names as the next page."""
    return next((each[1] for each in _LINK.finditer(link) if _IS_NEXT.search(each[2])), None)


def _refuse_circle(mark: str, seen: set[str], doing: str) -> None:
    """Raise UpstreamError where a page, known by its URL or its first name, has been there before."""
    if mark in seen:
        raise UpstreamError(
            f"{doing}: the listing goes round in a circle, a page came twice; check that HF_ENDPOINT is a Hub"
        )
    seen.add(mark)


def _entry(item: Any) -> FileEntry:
    lfs = item.get("lfs")
    size, oid, path = (lfs or item)["size"], item["oid"], item["path"]
    digest = f"sha256:{lfs['oid'].removeprefix('sha256:')}" if lfs else f"git-sha1:{oid}"
    if type(size) is not int or size < 0 or not isinstance(path, str):
        raise TypeError(item)
    if not _GIT_OID.fullmatch(oid) or not _DIGEST.fullmatch(digest):
        raise ValueError(item)
    return FileEntry(path=path, size=size, digest=digest, identity=oid)
