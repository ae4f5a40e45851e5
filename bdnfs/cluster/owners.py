"""Who owns a chunk: rendezvous hashing with bounded load, computed by every node for itself.

A chunk ranks all members by a score of its digest and their names: nothing but the names is needed to
know whom to ask next. Scores alone would give the luckiest of a hundred members a sixth more than its part,
of a thousand twice its part, and everyone waits for the slowest. So within one manifest no member owns more
than SLACK above its part: the chunks are dealt out in the order of their digests, each to the best-ranked
member that still has room. Whoever knows the manifest and the members computes the same; no chunk has a
record anywhere.

Scores are tabulation hashes: a chunk's digest is stretched to TABLES tables of WORDS random words, a member's
name picks one word of each, and their XOR is the score. That is all integers, so every node and version agrees,
and it costs a fraction of a hash for each chunk and member. To change any of it is to move every chunk of
every cluster: the golden vectors in tests/cluster/test_owners.py say so.
"""

from collections.abc import Callable, Iterable
from fractions import Fraction
from math import ceil, floor
from operator import itemgetter, xor
from struct import Struct
from typing import Any

from blake3 import blake3

# 17,000 chunks, 100 members, one leaves: 1.1 to 1.3 of its part move (its own, and what room they took from others);
# without slack 1.9. With 0.25 the luckiest owns 1.17 of a part.
SLACK = Fraction(1, 20)
TABLES, WORDS = 4, 64  # 24 bits of a name: of 1,000 members two share a score with odds of 1 in 33
_TABLES = Struct(f"<{TABLES * WORDS}Q")


class Rendezvous:
    """The ranking of members for any chunk. Immutable; making one costs a hash for each name."""

    def __init__(self, names: Iterable[str]) -> None:
        """names: of the members that may own chunks; double ones count once."""
        # Sorted: equal scores go to the first name, wherever they are computed.
        self.names = tuple(sorted(set(names)))
        picks = [blake3(name.encode()).digest(length=TABLES) for name in self.names]
        self._words = [
            _words([table * WORDS + pick[table] % WORDS for pick in picks]) for table in range(TABLES)
        ]

    def ranked(self, chunk: bytes) -> list[str]:
        """Return all members, from the best for chunk (its BLAKE3 digest) to the worst."""
        scores = self._scores(chunk)
        best_first = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        return [self.names[index] for index in best_first]

    def owners(self, chunks: Iterable[bytes], slack: Fraction = SLACK) -> dict[bytes, str]:
        """Return the owner of each of one manifest's chunks (BLAKE3 digests, in any order, double ones once).

        No member owns more than (1 + slack) × chunks / members, rounded down, for where a member owns a dozen chunks
        one more is a twelfth; but as many as an even part rounded up. Without members nobody owns any.
        It takes CPU for chunks × members (17,000 × 100: 1.4 s): call it in a thread, and keep what
        it returns for as long as the members stay the same.
        """
        dealt = sorted(set(chunks))
        if not self.names:
            return {}
        even = Fraction(len(dealt), len(self.names))
        most = max(ceil(even), floor((1 + slack) * even))
        owned = [0] * len(self.names)
        found = {}
        for chunk in dealt:
            scores = self._scores(chunk)
            best = scores.index(max(scores))
            if owned[best] >= most:
                free = (index for index, count in enumerate(owned) if count < most)
                best = max(free, key=scores.__getitem__)
            owned[best] += 1
            found[chunk] = self.names[best]
        return found

    def _scores(self, chunk: bytes) -> list[int]:
        """Return the members' scores for chunk, in the order of names."""
        tables = _TABLES.unpack(blake3(chunk).digest(length=_TABLES.size))
        first, second, third, fourth = (words(tables) for words in self._words)
        return list(map(xor, map(xor, first, second), map(xor, third, fourth)))


def _words(places: list[int]) -> Callable[[Any], tuple[int, ...]]:
    """Return what takes the words at these places; itemgetter returns no tuple for fewer than two."""
    if len(places) < 2:
        return lambda tables: tuple(tables[place] for place in places)
    return itemgetter(*places)
