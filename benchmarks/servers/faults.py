"""Faults on demand: what a server does instead of answering well."""

import random
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong, with which requests, how often. What is named together happens together.

    match:            regex searched in the request's path (unquoted, without its query)
    method:           only this one; empty: any
    after:            matching requests answered well before the first fault
    times:            how many requests it hits; None: all
    delay_s:          wait before anything is answered
    reset:            the connection is reset instead of an answer
    status:           answered instead, with body
    headers:          added to the answer, or instead of its own of that name
    ignore_range:     the whole file is answered where a range was asked for
    redirect_to:      a 302 to this location is answered instead
    stall:            half of the body, then silence until the client goes away
    truncate_at:      so many bytes of the body, then the connection ends; Content-Length says more
    wrong_bytes:      one byte in the middle of the body is another one
    slow_bytes_per_s: the body trickles
    """

    match: str = ""
    method: str = ""
    after: int = 0
    times: int | None = 1
    delay_s: float = 0.0
    reset: bool = False
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    ignore_range: bool = False
    body: str = "a fault on demand\n"
    redirect_to: str | None = None
    stall: bool = False
    truncate_at: int | None = None
    wrong_bytes: bool = False
    slow_bytes_per_s: float | None = None


# What a client must survive by trying again. Wrong bytes are not among them: whether a retry
# may mend them is for the test to say.
PASSING = (
    Fault(reset=True),
    Fault(status=500),
    Fault(status=503, headers={"Retry-After": "0"}),
    Fault(status=429, headers={"Retry-After": "0"}),
    Fault(truncate_at=1),
)


class Faults:
    """The faults one server consults, first added first; safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._script: list[_Scripted] = []
        self._dice: tuple[random.Random, float, tuple[Fault, ...]] | None = None
        self.hits = 0

    def add(self, fault: Fault | None = None, /, **fields: object) -> Fault:
        """Add fault, or the Fault that fields describe, behind those already there; return it."""
        fault = fault or Fault(**fields)  # type: ignore[arg-type]
        with self._lock:
            self._script.append(_Scripted(fault))
        return fault

    def random(self, seed: int, rate: float, kinds: tuple[Fault, ...] = PASSING) -> None:
        """From now on let a share of `rate` of all other requests meet one of kinds, as seed decides."""
        with self._lock:
            self._dice = (random.Random(seed), rate, kinds)

    def clear(self) -> None:
        """From now on answer well."""
        with self._lock:
            self._script.clear()
            self._dice = None

    def take(self, method: str, path: str) -> Fault | None:
        """Return the fault this request meets, counting it, or None."""
        with self._lock:
            fault = next((each.fault for each in self._script if each.strikes(method, path)), None)
            if fault is None and self._dice is not None:
                dice, rate, kinds = self._dice
                fault = dice.choice(kinds) if dice.random() < rate else None
            self.hits += fault is not None
            return fault


class _Scripted:
    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.seen = 0

    def strikes(self, method: str, path: str) -> bool:
        fault = self.fault
        if (fault.method and fault.method != method) or not re.search(fault.match, path):
            return False
        self.seen += 1
        return self.seen > fault.after and (fault.times is None or self.seen <= fault.after + fault.times)
