"""How obstore is told to reach a store: proxies, certificates, timeouts, and no retries of its own."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from obstore import exceptions

from bdnfs.core.errors import SpecError, UnavailableError, UpstreamError
from bdnfs.origins.credentials import Credential
from bdnfs.origins.floor import Floor
from bdnfs.origins.http import CONNECT_TIMEOUT_S, HttpConfig
from bdnfs.origins.proxies import proxy_for

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import AzureStore, S3Store

    ObjectStore: TypeAlias = S3Store | AzureStore

T = TypeVar("T")

# Everything obstore raises; what they mean: object_errors.py.
FOREIGN = (exceptions.BaseError, OSError, ValueError)
# Whether and when a request is made again is decided by tiers.retry.
NO_RETRIES: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
# A request for content may take its time: what is slow is ended by a floor under its stream.
CONTENT_TIMEOUT = timedelta(days=1)
# A listing's page or an object's head is small: all of it in so many times the stall, however it trickles.
_METADATA_STALLS = 10


def metadata_timeout(http: HttpConfig) -> timedelta:
    """Return how long a request may take whose answer is small."""
    return timedelta(seconds=_METADATA_STALLS * http.stall_s)


def client_options(url: str, http: HttpConfig, timeout: timedelta) -> Any:
    """Return obstore's client_options for the store at url; SpecError if the CA bundle can't be read.

    timeout: for a whole request; each wait for bytes has http.stall_s
    """
    options: dict[str, Any] = {
        "allow_http": url.startswith("http://"),
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "read_timeout": timedelta(seconds=http.stall_s),
        "timeout": timeout,
        "user_agent": "bdnfs",
    }
    proxy = proxy_for(url, http.proxies)
    if proxy:
        options["proxy_url"] = proxy
    if http.ca_bundle:
        try:
            with open(http.ca_bundle, "rb") as file:
                options["root_certificate"] = file.read()
        except OSError as error:
            raise SpecError(
                f"the CA bundle {http.ca_bundle} can't be read ({error.strerror}); name a readable PEM file"
            ) from None
    return options


class Provider(Generic[T]):
    """What obstore asks for credentials before each request, for they may be others by then.

    Always given, also for plain keys: obstore would complete those with what the environment holds.

    form: what obstore calls the parts of a credential
    """

    def __init__(self, credential: Credential[T], form: Callable[[T], dict[str, Any]]) -> None:
        self._credential, self._form = credential, form

    def __repr__(self) -> str:
        return "***"

    def __call__(self) -> Any:
        # obstore keeps what it is given until it expires; this has when it is used.
        return {**self._form(self._credential.current()), "expires_at": datetime.now(UTC)}


def drain(result: "GetResult", into: memoryview, doing: str, stall_s: float) -> None:
    """Fill `into` with an answer's content as it comes; raise where it is longer, shorter, or trickles."""
    floor, got = Floor(stall_s), 0
    # Pieces however small: obstore's own gathering would hide a trickle.
    pieces, began_s = result.stream(min_chunk_size=1), time.monotonic()
    for piece in pieces:
        end = got + len(piece)
        if end > len(into):
            raise UpstreamError(
                f"{doing}: the store sent more than the {len(into)} bytes asked for; check the endpoint"
            )
        floor.note(len(piece), time.monotonic() - began_s)
        into[got:end] = memoryview(piece)
        got, began_s = end, time.monotonic()
    if got < len(into):
        raise UnavailableError(f"{doing}: the store broke off after {got} of {len(into)} bytes; try again")
