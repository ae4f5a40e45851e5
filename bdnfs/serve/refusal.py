"""What an object's endpoint says instead of the object: S3's errors, and which of ours becomes which."""

from typing import NamedTuple
from xml.sax.saxutils import escape

from bdnfs.core.errors import (
    BdnfsError,
    DeadlineError,
    IntegrityError,
    NotFoundError,
    SpecError,
    UnavailableError,
)

RETRY_AFTER_S = 5


class Refusal(NamedTuple):
    """An answer that is an error. code: S3's; retry_after_s: None where trying again is of no use."""

    status: int
    code: str
    message: str
    retry_after_s: int | None = None

    def xml(self) -> bytes:
        return (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{self.code}</Code>'
            f"<Message>{escape(self.message)}</Message></Error>"
        ).encode()

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}


def refusal_of(error: BdnfsError, what: str) -> Refusal:
    """Return what a client is told of an error while `what` was read.

    Where the mirror lies, and what it answered, is its operator's to know: that is in the log.
    """
    match error:
        case NotFoundError():
            return Refusal(404, "NoSuchKey", f"there is no {what}")
        case IntegrityError():
            return Refusal(
                500, "InternalError", f"{what} is damaged in the mirror; its operator has to repair it"
            )
        case UnavailableError(retry_after_s=wait_s):
            return _away(what, RETRY_AFTER_S if wait_s is None else max(1, round(wait_s)))
        case DeadlineError():
            return Refusal(
                503, "SlowDown", "too many objects are being read at once; try again", RETRY_AFTER_S
            )
        case SpecError():
            return Refusal(400, "InvalidRequest", str(error))
    return Refusal(
        502, "InternalError", f"the mirror gives no usable answer for {what}; its operator's log says why"
    )


def _away(what: str, wait_s: int) -> Refusal:
    return Refusal(503, "ServiceUnavailable", f"the mirror can't give {what} now; try again", wait_s)
