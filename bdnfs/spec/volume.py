"""Volumes are referred to as BDN's own tools do it: `bdn:<namespace>/<volume>[:tag|@digest][/path]`.

Grammar and limits: PyPI `baseten-bdn` 0.1.1, `baseten.bdn.volumes.VolumeRef`.
"""

import re
from typing import NamedTuple

from bdnfs.core.errors import SpecError

SCHEME = "bdn:"
NAME_CHARS_MAX = 256
TAG_CHARS_MAX = 128
DIGEST_DIGITS = 64
# The shortest digest that a service resolves.
SHORT_DIGITS_MIN = 12

_NAME = re.compile(r"[a-z][a-z0-9-]{1,255}")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HEX = re.compile(r"[0-9a-f]{1,64}")
# Path segments that the service routes before it looks for a name.
_RESERVED = {"namespace": frozenset({"namespaces", "resolve"}), "volume": frozenset({"manifests", "objects"})}


class VolumeRef(NamedTuple):
    """`bdn:<namespace>/<volume>[:tag|@digest][/path]`.

    digest: hex digits without `b3:`, 12 to 64 of them; path: relative, "" for the whole version.
    With neither tag nor digest it is the volume's head.
    """

    namespace: str
    volume: str
    tag: str | None = None
    digest: str | None = None
    path: str = ""

    def __str__(self) -> str:
        from urllib.parse import quote  # late: few sources are volumes

        selector = f":{self.tag}" if self.tag else f"@b3:{self.digest}" if self.digest else ""
        path = f"/{quote(self.path)}" if self.path else ""
        return f"{SCHEME}{self.namespace}/{self.volume}{selector}{path}"


def parse_ref(text: str) -> VolumeRef:
    """Read a ref; raise SpecError saying what is wrong with it."""
    if not text.startswith(SCHEME) or text.startswith(f"{SCHEME}//"):
        raise SpecError(f"{text!r} is no volume: write bdn:<namespace>/<volume>[:tag | @digest][/path]")
    namespace, _, rest = text[len(SCHEME) :].partition("/")
    volume, _, path = rest.partition("/")
    tag = digest = None
    if "@" in volume:
        volume, _, digest = volume.partition("@")
        digest = digest.lower().removeprefix("b3:")
        if not _HEX.fullmatch(digest) or len(digest) < SHORT_DIGITS_MIN:
            raise SpecError(
                f"{text!r}: a digest is {SHORT_DIGITS_MIN} to {DIGEST_DIGITS} hex digits, as `bdnfs mirror ls` shows it"
            )
    elif ":" in volume:
        volume, _, tag = volume.partition(":")
        if not TAG.fullmatch(tag):
            raise SpecError(f"{text!r}: a tag has 1 to {TAG_CHARS_MAX} letters, digits, `.`, `_` or `-`")
    return VolumeRef(
        check_name(namespace.lower(), "namespace", text),
        check_name(volume.lower(), "volume", text),
        tag,
        digest,
        _path(path, text),
    )


def check_name(name: str, kind: str, where: str) -> str:
    """Return name if it may be a namespace's or a volume's (kind); raise SpecError if not."""
    if not _NAME.fullmatch(name):
        raise SpecError(
            f"{where!r}: {name!r} is no {kind}'s name: 2 to {NAME_CHARS_MAX} of a-z, 0-9 and `-`, a letter first"
        )
    if name in _RESERVED[kind]:
        raise SpecError(f"{where!r}: {name!r} is reserved and can't be a {kind}'s name")
    return name


def _path(text: str, where: str) -> str:
    from urllib.parse import unquote

    if not text.rstrip("/"):
        return ""
    parts = [unquote(part) for part in text.rstrip("/").split("/")]
    if any(part in ("", ".", "..") or "/" in part or "\0" in part for part in parts):
        raise SpecError(f"{where!r}: a path inside a volume has no empty part, `.` or `..`")
    return "/".join(parts)
