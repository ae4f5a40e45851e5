"""What a source names: `hf://org/repo@rev`, `s3://bucket/prefix`, `https://host/file`, …"""

import re
from typing import TYPE_CHECKING

import msgspec

from bdnfs.core.errors import SpecError
from bdnfs.spec.fields import nearest, shown, unprintable

if TYPE_CHECKING:
    from bdnfs.spec.volume import VolumeRef

BUCKET_SCHEMES = ("s3", "gs", "azure", "r2", "cw")
WEB_SCHEMES = ("https", "http")
# fsspec's protocols that name a store: no wrappers (zip, simplecache), nothing that ends with the
# process (memory), no second names of the schemes above (gcs, s3a, az). A test holds it to fsspec.
GENERIC_SCHEMES = (
    *("file", "local", "sftp", "ssh", "ftp", "smb", "webdav", "webhdfs", "hdfs", "abfs", "adl", "dbfs"),
    *("github", "gist", "dropbox", "box", "gdrive", "lakefs", "oci", "ocilake", "oss", "tos", "wandb"),
    "root",
)
SCHEMES = ("hf", *BUCKET_SCHEMES, *WEB_SCHEMES, *GENERIC_SCHEMES)

_SECOND_NAMES = {
    "huggingface": "hf",
    "hub": "hf",
    "s3a": "s3",
    "s3n": "s3",
    "gcs": "gs",
    "az": "azure",
    "blob": "azure",
    "coreweave": "cw",
    "dav": "webdav",
    "abfss": "abfs",
    "scp": "sftp",
}
_SOURCE_CHARS_MAX = 4096
# Those that a hit does not need are compiled on first use: compiling costs more than the import.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)
_REPO_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-fA-F]{40}", re.ASCII)
_DIGEST = re.compile(r"b3:[0-9a-f]{64}", re.ASCII)
# git-check-ref-format(1), plus what would not survive in a URL.
_BAD_REVISION = r"[\s~^:?*\[\]\\#]|\.\.|//|@\{|^[-/.]|/\.|/$|\.$|\.lock$"
# What S3, GCS, R2 and Azure allow in the names of buckets and accounts, taken together.
_BUCKET = r"[A-Za-z0-9][A-Za-z0-9._-]{0,221}"
_PASSWORD = r"://[^/?#@]*:[^/?#]*@"
_HUB_PAGE = r"(?:www\.)?(?:huggingface\.co|hf\.co)/((?:datasets/)?[^/]+/[^/]+?)(?:/tree/([^/]+))?/?"
# Query parameters that are a right to read: signatures and tokens of S3, GCS, Azure, and in general.
_SECRET_PARAMETERS = {
    *("x-amz-signature", "x-amz-credential", "x-amz-security-token", "x-goog-signature", "x-goog-credential"),
    *("signature", "sig", "awsaccesskeyid", "token", "access_token", "auth_token", "api_key", "apikey"),
}


class Source(msgspec.Struct, frozen=True):
    """One upstream place, in canonical form.

    scheme:   one of SCHEMES, or bdn
    rest:     what follows `scheme://` (for a Hub dataset without `datasets/`; of a volume its namespace, name and
              path), without the revision
    revision: what follows `@` of an hf source, or None; of a volume its tag, or `b3:` and the digits of its digest
    kind:     "model" or "dataset"; everything that is not a Hub dataset is a "model"
    """

    scheme: str
    rest: str
    revision: str | None
    kind: str = "model"

    @property
    def key(self) -> str:
        """The canonical text without the revision: `hf://org/repo`, `hf://datasets/org/name`, `bdn:team/model`."""
        if self.scheme == "bdn":
            return str(self.ref._replace(tag=None, digest=None))
        return f"{self.scheme}://{'datasets/' if self.kind == 'dataset' else ''}{self.rest}"

    @property
    def text(self) -> str:
        """The canonical text with the revision; `parse_source(text)` gives this source again."""
        if self.scheme == "bdn":
            return str(self.ref)
        return self.key if self.revision is None else f"{self.key}@{self.revision}"

    @property
    def pinned(self) -> bool:
        """Whether it names one commit, or one version of a volume: upstream need never be asked what it means."""
        immutable = {"hf": _COMMIT, "bdn": _DIGEST}.get(self.scheme)
        return bool(immutable and self.revision is not None and immutable.fullmatch(self.revision))

    @property
    def ref(self) -> "VolumeRef":
        """The volume that a source with the scheme bdn is."""
        from bdnfs.spec.volume import VolumeRef  # late: most sources are none

        namespace, volume, *path = self.rest.split("/", 2)
        revision = self.revision or ""
        digest = revision.removeprefix("b3:") if revision.startswith("b3:") else None
        return VolumeRef(namespace, volume, None if digest else self.revision, digest, "".join(path))


def is_source_text(text: str) -> bool:
    """Return whether text is meant as a source rather than as the path of a spec file."""
    return _SCHEME.match(text) is not None or text.startswith("bdn:")


def parse_source(text: str) -> Source:
    """Return the source that text names; raise SpecError, with nothing secret in it, if it names none."""
    if len(text) > _SOURCE_CHARS_MAX:
        raise SpecError(f"source {shown(text[:16])}… is longer than {_SOURCE_CHARS_MAX} characters")
    name = shown(redacted(text))
    reason = unprintable(text) or ("has blanks around it" if text != text.strip() else None)
    if reason:
        raise SpecError(f"source {name} {reason}; write it as scheme://…")
    if text.startswith("bdn:"):
        return _volume(text)
    match = _SCHEME.match(text)
    if match is None:
        hint = f"; did you mean 'hf://{text}'?" if _looks_like_repo(text) else ""
        raise SpecError(
            f"source {name} has no scheme{hint or '; write it as scheme://…, such as hf://org/repo'}"
        )
    scheme, rest = match[1], text[match.end() :]
    if scheme not in SCHEMES:
        meant = _SECOND_NAMES.get(scheme.lower()) or nearest(scheme, SCHEMES)
        hint = f"did you mean {meant}://? " if meant else ""
        raise SpecError(f"source {name}: unknown scheme {scheme!r}; {hint}Known: {', '.join(SCHEMES)}")
    if "@" in rest and re.match(_PASSWORD, text[len(scheme) :]):
        raise SpecError(
            f"source {name} holds a password; a spec holds no secret: use auth_secret_name, or a key file"
        )
    if not rest or (rest.startswith("/") and scheme not in GENERIC_SCHEMES) or not rest.strip("/"):
        raise SpecError(f"source {name} names nothing after {scheme}://; write {_example(scheme)}")
    if scheme == "hf":
        return _hub(rest, name)
    if scheme in BUCKET_SCHEMES:
        return Source(scheme, _bucket(scheme, rest, name), None)
    if scheme in WEB_SCHEMES:
        _check_url(scheme, rest, name)
    elif scheme in ("file", "local") and not rest.startswith("/"):
        raise SpecError(f"source {name} is not an absolute path; write {scheme}:///path/to/files")
    return Source(scheme, rest, None)


def redacted(text: str) -> str:
    """Return a source text without a password, and for anything but buckets without its query's values."""
    text = re.sub(_PASSWORD, "://***@", text)
    head, question, _ = text.partition("?")
    return f"{head}?…" if question and not head.startswith(tuple(f"{s}://" for s in BUCKET_SCHEMES)) else text


def _hub(rest: str, name: str) -> Source:
    repo, at, revision = rest.partition("@")
    parts = repo.split("/")
    kind = "model"
    if parts[0] == "datasets":
        kind, parts = "dataset", parts[1:]
    elif parts[0] == "spaces":
        raise SpecError(
            f"source {name} is a Space; only models and datasets (hf://datasets/org/name) can be mounted"
        )
    if len(parts) == 3 and not parts[2]:
        parts.pop()
    if len(parts) > 2 and all(parts[:2]):
        raise SpecError(
            f"source {name} goes on below the repository; write hf://{'/'.join(parts[:2])} and choose "
            f"files with allow_patterns: ['{'/'.join(parts[2:]).strip('/')}/**']"
        )
    if not 1 <= len(parts) <= 2 or not all(_REPO_PART.fullmatch(part) and ".." not in part for part in parts):
        raise SpecError(
            f"source {name} is not a repository of the Hub; write hf://org/repo[@revision] or "
            "hf://datasets/org/name[@revision] (letters, digits, '-', '_', '.')"
        )
    return Source("hf", "/".join(parts), _revision(revision, name) if at else None, kind)


def _volume(text: str) -> Source:
    from bdnfs.spec.volume import parse_ref

    ref = parse_ref(text)
    rest = "/".join(filter(None, (ref.namespace, ref.volume, ref.path)))
    return Source("bdn", rest, f"b3:{ref.digest}" if ref.digest else ref.tag)


def _revision(text: str, name: str) -> str:
    # The Hub's own URLs write a slash in a revision as %2F.
    revision = re.sub("%2[fF]", "/", text)
    if not revision:
        raise SpecError(
            f"source {name} ends in '@'; write a branch, a tag or a commit after it, or leave it out"
        )
    if len(revision) > 255 or re.search(_BAD_REVISION, revision):
        raise SpecError(f"source {name}: {shown(revision)} can't be a branch, a tag or a commit")
    return revision.lower() if _COMMIT.fullmatch(revision) else revision


def _bucket(scheme: str, rest: str, name: str) -> str:
    if "@" in rest:
        raise SpecError(f"source {name}: {scheme}:// has no revisions, '@' is for hf:// only; leave it out")
    parts = rest.rstrip("/").split("/")
    if not re.fullmatch(_BUCKET, parts[0]) or parts[-1] != parts[-1].rstrip():
        raise SpecError(f"source {name} names no bucket, or ends in blanks; write {_example(scheme)}")
    if any(part in (".", "..") for part in parts):
        raise SpecError(f"source {name} has '.' or '..' as a component; write the prefix out")
    if (scheme == "r2" and "." not in parts[0].strip(".")) or (scheme == "azure" and len(parts) < 2):
        raise SpecError(f"source {name} is incomplete; write {_example(scheme)}")
    return "/".join(parts)


def _check_url(scheme: str, rest: str, name: str) -> None:
    from urllib.parse import parse_qsl, urlsplit  # only for what is a URL

    try:
        url = urlsplit(f"{scheme}://{rest}")
        host, _ = url.hostname, url.port
    except ValueError:
        host = None
    if not host or any(char.isspace() for char in rest):
        raise SpecError(f"source {name} is not a URL; write {_example(scheme)}, blanks as %20")
    if url.fragment or rest.endswith("#"):
        raise SpecError(f"source {name} has a part after '#', which no server sees; leave it out")
    secret = [
        key for key, _ in parse_qsl(url.query, keep_blank_values=True) if key.lower() in _SECRET_PARAMETERS
    ]
    if secret:
        raise SpecError(
            f"source {name} is signed: its query holds {secret[0][:40]!r}; a spec holds no secret. "
            "Name the store itself (s3://, gs://, azure://) with credentials beside it, or an unsigned URL"
        )
    page = re.fullmatch(_HUB_PAGE, rest)
    if page:
        meant = f"hf://{page[1]}" + (f"@{page[2]}" if page[2] else "")
        raise SpecError(f"source {name} is a page about a repository, not its files; write {shown(meant)}")


def _looks_like_repo(text: str) -> bool:
    parts = text.partition("@")[0].split("/")
    return len(parts) == 2 and all(_REPO_PART.fullmatch(part) for part in parts)


def _example(scheme: str) -> str:
    return {
        "hf": "hf://org/repo",
        "r2": "r2://account_id.bucket/prefix",
        "azure": "azure://account/container/prefix",
        "https": "https://host/file",
        "http": "http://host/file",
    }.get(scheme, f"{scheme}://bucket/prefix" if scheme in BUCKET_SCHEMES else f"{scheme}://host/path")
