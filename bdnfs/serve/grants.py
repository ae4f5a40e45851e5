"""What the service hands out: statements under its own key of who may read what until when.

Nothing is kept of them: whoever holds the key can tell its own from all others. A bearer token opens
`resolve`; a session token, with the keys made from it, signs requests for objects.
"""

import base64
import hmac
import time
from enum import StrEnum
from typing import NamedTuple

import msgspec
from blake3 import blake3

KEY_BYTES = 32
# Header lines hold 16 KiB in all; a statement longer than this could not be sent back.
SEALED_CHARS_MAX = 8192
# What makes one key of another, once for each use: https://docs.rs/blake3 (derive_key).
_CONTEXT = "bdnfs serve-volumes v1 "


class Purpose(StrEnum):
    """What a statement is good for; none passes for another."""

    TOKEN = "token"
    SESSION = "session"


class Grant(msgspec.Struct, frozen=True):
    """One tenant's leave to read. expires_s: seconds since the epoch; volumes: none in a session."""

    tenant: str
    namespaces: tuple[str, ...]
    volumes: tuple[str, ...]
    expires_s: int

    @property
    def is_over(self) -> bool:
        return time.time() >= self.expires_s


class Credentials(NamedTuple):
    """What signs a request, as S3 names it."""

    access_key: str
    secret_key: str
    session_token: str

    def __repr__(self) -> str:
        return f"Credentials({self.access_key}, ***)"


class Grants:
    """Seals and opens statements. master: KEY_BYTES secret bytes, the same in services that replace each other."""

    def __init__(self, master: bytes) -> None:
        assert len(master) == KEY_BYTES
        self._keys = {
            name: blake3(master, derive_key_context=_CONTEXT + name).digest()
            for name in (*Purpose, "access", "secret")
        }

    def seal(self, purpose: Purpose, grant: Grant) -> str:
        stated = _text(msgspec.json.encode(grant))
        return f"{stated}.{self._mark(purpose, stated)}"

    def open(self, purpose: Purpose, sealed: str) -> Grant | None:
        """Return what was sealed for this purpose, None if it was not sealed here. It may be over."""
        if len(sealed) > SEALED_CHARS_MAX:
            return None
        stated, _, mark = sealed.partition(".")
        if not hmac.compare_digest(mark.encode(), self._mark(purpose, stated).encode()):
            return None
        return msgspec.json.decode(_data(stated), type=Grant)

    def credentials(self, session_token: str) -> Credentials:
        """Return the keys that go with a session token."""
        access = self._mark("access", session_token)
        letters = "".join(char for char in access.upper() if char.isalnum())
        return Credentials(f"BDNFS{letters[:15]}", self._mark("secret", session_token), session_token)

    def _mark(self, purpose: str, text: str) -> str:
        return _text(blake3(text.encode(), key=self._keys[purpose]).digest())


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _data(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
