"""What an origin shows to its upstream: asked for whenever it is needed, for it may be another by then.

A secret's file may be replaced while a mount stands, and what an exchange gave expires. So an origin
holds no value but a `Credential`, and asks it before each request.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

from bdnfs.core.errors import BdnfsError, CredentialsError, UnavailableError, UpstreamError
from bdnfs.spec.secret import Secret, Secrets

T = TypeVar("T")

# Fetched anew so long before it expires (or a quarter of its life, where that is shorter): time for a
# request under way to end with the old one, and for some more tries if the exchange can't be reached.
REFRESH_S = 300.0
# After an exchange that failed the old value serves on; not every request is to wait for another failure.
_PAUSE_S = 10.0
# What was exchanged only just now and is refused would be refused again.
_NEW_S = 5.0


class Credential(Protocol[T]):
    """What upstream is shown. Safe from several threads.

    name: what errors say was used, such as `the secret 'hf_token'` or `AWS_OIDC (role arn:…)`
    """

    name: str

    def current(self) -> T:
        """Return what to show now; at most the time of one exchange passes.

        Raises CredentialsError where there is none or it has the wrong shape, UnavailableError where
        an exchange can't be reached.
        """
        ...

    def refused(self, used: T) -> bool:
        """Upstream refused `used`: return whether `current` has another one now, worth one more try."""
        ...


class Named(NamedTuple):
    """A secret: what errors call it, and what reads its text as it is now (CredentialsError if it can't)."""

    name: str
    read: Callable[[], Secret]


def named(secrets: Secrets, name: str) -> Named:
    """Return the secret called name, read anew each time."""
    return Named(f"the secret {name!r}", lambda: secrets.read(name))


class Fixed(Generic[T]):
    """A value that stays as it is, such as one from the environment."""

    def __init__(self, value: T, name: str) -> None:
        self.name = name
        self._value = value

    def current(self) -> T:
        return self._value

    def refused(self, used: T) -> bool:
        return False


class Reread(Generic[T]):
    """What stands in a file, which may be replaced: read anew each time.

    read: raises CredentialsError for what can't be used. While a file is away, or half written, the last
    good value serves on, until upstream refuses it.
    """

    def __init__(self, name: str, read: Callable[[], T]) -> None:
        self.name = name
        self._read = read
        self._known = read()

    def current(self) -> T:
        with contextlib.suppress(CredentialsError):
            self._known = self._read()
        return self._known

    def refused(self, used: T) -> bool:
        self._known = self._read()
        return self._known != used


class AwsKeys(NamedTuple):
    """Keys of an AWS API; shown as `***`."""

    key_id: str
    secret_key: str
    session_token: str | None = None

    def __repr__(self) -> str:
        return "***"


class AccessToken(NamedTuple):
    """A bearer token of Google's; shown as `***`. expires_s: by time.time()."""

    token: str
    expires_s: float

    def __repr__(self) -> str:
        return "***"


class Temporary(NamedTuple, Generic[T]):
    """What an exchange gave. expires_s: by time.time()."""

    value: T
    expires_s: float

    def __repr__(self) -> str:
        return "***"


class Exchanged(Generic[T]):
    """What upstream lends for a while: fetched when first asked for, and again before it expires.

    One thread exchanges at a time; the others go on with the old value for as long as it is good.

    wait_s: the longest that a thread waits for another one's exchange
    """

    def __init__(self, name: str, exchange: Callable[[], Temporary[T]], wait_s: float) -> None:
        self.name = name
        self._exchange = exchange
        self._wait_s = wait_s
        self._exchanging = threading.Lock()
        self._known: Temporary[T] | None = None
        self._began_s = self._refresh_s = 0.0

    def current(self) -> T:
        known = self._good()
        if known is not None and time.time() < self._refresh_s:
            return known.value
        if not self._exchanging.acquire(timeout=0 if known else self._wait_s):
            if known is not None:
                return known.value
            raise UnavailableError(
                f"{self.name}: no answer to the exchange for credentials after {self._wait_s:.0f} s; "
                "try again, or check network and proxy"
            )
        try:
            latest = self._good()
            if latest is not None and time.time() < self._refresh_s:
                return latest.value  # another thread has just fetched it
            return self._fetch(latest).value
        finally:
            self._exchanging.release()

    def refused(self, used: T) -> bool:
        with self._exchanging:
            known = self._good()
            if known is None or known.value != used:
                return True
            if time.time() - self._began_s < _NEW_S:
                return False
            self._refresh_s = 0.0
            self._known = known._replace(expires_s=0.0)
            return True

    def _good(self) -> Temporary[T] | None:
        known = self._known
        return known if known is not None and time.time() < known.expires_s else None

    def _fetch(self, good: Temporary[T] | None) -> Temporary[T]:
        began_s = time.time()
        try:
            found = self._exchange()
        except BdnfsError:
            if good is None:
                raise
            self._refresh_s = time.time() + _PAUSE_S
            return good
        life_s = found.expires_s - began_s
        self._began_s = began_s
        self._refresh_s = found.expires_s - min(REFRESH_S, life_s / 4)
        self._known = found
        return found


def refuse_expired(doing: str, expires_s: float) -> None:
    """Raise UpstreamError where what an exchange gave is over already; expires_s by time.time()."""
    if expires_s <= time.time():
        raise UpstreamError(f"{doing}: what was answered has expired already; check this machine's clock")
