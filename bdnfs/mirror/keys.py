"""What a key of a store may look like: a second line behind whoever builds keys, before any store sees one."""

import re

from bdnfs.core.errors import UpstreamError

KEY_BYTES_MAX = 1024  # S3's
_COMPONENT = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}"
_KEY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")


def is_key(text: str) -> bool:
    """Say whether text is a key: `/`-separated letters, digits and `._-`; no component begins with a dot."""
    return len(text) <= KEY_BYTES_MAX and _KEY.fullmatch(text) is not None


def check_key(key: str) -> str:
    """Return key; raise UpstreamError if it is none."""
    if not is_key(key):
        raise UpstreamError(
            f"{key[:120]!r} is no key of a mirror: it needs components of letters, digits and ._- that don't "
            "begin with a dot; the manifest that names it is damaged, run: bdnfs mirror verify"
        )
    return key


def check_prefix(prefix: str) -> str:
    """Return prefix, which is empty or a key and a slash; raise UpstreamError otherwise."""
    if prefix:
        check_key(prefix.removesuffix("/"))
        if not prefix.endswith("/"):
            raise UpstreamError(f"{prefix[:120]!r} is no prefix to list: it has to end in a slash")
    return prefix
