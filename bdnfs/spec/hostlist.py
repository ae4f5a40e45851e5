"""Lists of host names as Slurm writes them: `node[01-04,07],login1`."""

import re
from collections.abc import Iterator

from bdnfs.core.errors import SpecError
from bdnfs.spec.fields import shown

HOSTS_MAX = 4096
_CHARS_MAX = 64 * 1024
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", re.ASCII)


def expand_hosts(expression: str, where: str) -> tuple[str, ...]:
    """Return the names that expression stands for, in its order; raise SpecError for what isn't one.

    A range keeps the leading zeros of its start; several brackets in one name multiply. More than HOSTS_MAX names
    are refused, before they are made.
    """
    if len(expression) > _CHARS_MAX:
        raise SpecError(f"{where}: {shown(expression)} is longer than any list of {HOSTS_MAX} hosts")
    hosts: list[str] = []
    for part in _parts(expression, where):
        names = [""]
        # Split by its brackets, a name is text, inside, text, inside, …, text.
        for index, piece in enumerate(re.split(r"\[([^\[\]]*)\]", part)):
            if index % 2 == 0:
                if not part or "[" in piece or "]" in piece:
                    raise SpecError(f"{where}: {shown(part)} is no host name; write node1 or node[01-04,07]")
                names = [name + piece for name in names]
            else:
                names = [name + number for name in names for number in _numbers(piece, len(names), where)]
        hosts += names
        if len(hosts) > HOSTS_MAX:
            raise _too_many(where)
    return tuple(hosts)


def _parts(expression: str, where: str) -> Iterator[str]:
    """Yield what stands between commas outside of brackets."""
    for part in re.split(r",(?![^\[\]]*\])", expression):
        yield part.strip(" ")


def _numbers(inside: str, times: int, where: str) -> list[str]:
    found: list[str] = []
    for item in inside.split(","):
        match = _RANGE.fullmatch(item)
        if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
            raise SpecError(f"{where}: [{shown(inside)[1:-1]}] is no list of numbers such as [01-04,07]")
        first, last = int(match[1]), int(match[2] or match[1])
        if (len(found) + last - first + 1) * times > HOSTS_MAX:
            raise _too_many(where)
        found += [f"{number:0{len(match[1])}}" for number in range(first, last + 1)]
    return found


def _too_many(where: str) -> SpecError:
    return SpecError(f"{where}: stands for more than {HOSTS_MAX} hosts, more than a cluster takes")
