"""What can be shown of work under way, whoever does it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

# How the state of who waits for another process begins.
WAITING = "waiting for "


class View(Protocol):
    """What can be shown: a fill's own counters, or what a daemon says of its."""

    @property
    def state(self) -> str: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def present_bytes(self) -> int: ...
    @property
    def files(self) -> int: ...
    @property
    def files_whole(self) -> int: ...
    @property
    def tier_bytes(self) -> dict[str, int]: ...
    @property
    def warnings(self) -> Sequence[str]: ...


@dataclass
class Counters:
    """A view that whoever does the work writes into. Bytes, files; state is a word for people.

    present_bytes: of total_bytes, what is where it is to be, whoever brought it
    tier_bytes:    what this process brought, by the tier it came from
    """

    state: str = "resolving"
    total_bytes: int = 0
    present_bytes: int = 0
    files: int = 0
    files_whole: int = 0
    tier_bytes: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def warn(self, line: str) -> None:
        if line not in self.warnings:
            self.warnings.append(line)
