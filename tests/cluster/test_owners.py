"""Owners of chunks: the same on every node, balanced within the bound, moving little, for ever the same."""

import json
import math
import random
import subprocess
import sys
from collections import Counter
from fractions import Fraction

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from bdnfs.cluster.owners import SLACK, Rendezvous

names = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=12, unique=True)
digests = st.lists(st.binary(min_size=32, max_size=32), max_size=60)


def chunks(count: int, seed: int = 0) -> list[bytes]:
    return [blake3(b"%d/%d" % (seed, index)).digest() for index in range(count)]


def nodes(count: int) -> list[str]:
    return [f"node{index:04}:7891" for index in range(count)]


@given(names, digests, st.randoms(use_true_random=False))
def test_every_node_computes_the_same(members: list[str], content: list[bytes], order: random.Random) -> None:
    """Whatever the order in which a node heard of members and chunks, and how often."""
    others, again = members + members[:1], content + content[:3]
    order.shuffle(others)
    order.shuffle(again)
    mine, theirs = Rendezvous(members), Rendezvous(others)
    assert mine.owners(content) == theirs.owners(again)
    assert [mine.ranked(chunk) for chunk in content] == [theirs.ranked(chunk) for chunk in content]


def _bound(count: int, members: int, slack: Fraction) -> int:
    even = Fraction(count, members)
    return max(math.ceil(even), math.floor((1 + slack) * even))


@given(names, digests, st.fractions(min_value=0, max_value=2))
def test_nobody_owns_more_than_the_bound(members: list[str], content: list[bytes], slack: Fraction) -> None:
    owners = Rendezvous(members).owners(content, slack)
    assert set(owners) == set(content)
    bound = _bound(len(owners), len(members), slack)
    assert all(count <= bound for count in Counter(owners.values()).values())


@given(names, digests)
def test_an_owner_is_the_best_ranked_member_that_has_room(members: list[str], content: list[bytes]) -> None:
    """The whole definition, written down a second time."""
    rendezvous = Rendezvous(members)
    bound = _bound(len(set(content)), len(members), SLACK)
    room = dict.fromkeys(members, bound)
    for chunk, owner in rendezvous.owners(content).items():
        ranked = rendezvous.ranked(chunk)
        assert sorted(ranked) == sorted(members)
        assert owner == next(name for name in ranked if room[name])
        room[owner] -= 1


@given(names.filter(lambda members: len(members) > 1), digests)
def test_a_ranking_without_one_member_is_the_ranking_less_that_member(
    members: list[str], content: list[bytes]
) -> None:
    fewer = Rendezvous(members[1:])
    for chunk in content:
        assert fewer.ranked(chunk) == [
            name for name in Rendezvous(members).ranked(chunk) if name != members[0]
        ]


@pytest.mark.parametrize(("count", "members", "parts_max"), [(2000, 4, 1.2), (2000, 8, 1.2), (2000, 40, 1.5)])
def test_a_member_that_leaves_or_comes_moves_little_more_than_its_own_part(
    count: int, members: int, parts_max: float
) -> None:
    """Averaged over whoever leaves; the same pair of memberships, the other way round, is one that joins."""
    content, everyone = chunks(count), nodes(members)
    before = Rendezvous(everyone).owners(content)
    leavers = everyone[:: max(1, members // 4)]
    moved = 0
    for leaver in leavers:
        after = Rendezvous(set(everyone) - {leaver}).owners(content)
        assert leaver not in after.values()
        moved += sum(before[chunk] != after[chunk] for chunk in content)
    part = count / members
    assert 0.5 * part <= moved / len(leavers) <= parts_max * part


def test_first_and_second_choices_are_spread_evenly() -> None:
    """Over all members alike, and whoever is first for a chunk, each other one may be second: else
    one member that dies would double the load of one other."""
    members, count = 16, 8000
    rendezvous = Rendezvous(nodes(members))
    ranked = [rendezvous.ranked(chunk) for chunk in chunks(count)]
    first = Counter(ranking[0] for ranking in ranked)
    pairs = Counter((ranking[0], ranking[1]) for ranking in ranked)
    # Chi-squared with 15 and 224 degrees of freedom: 99.9 % stay below 37.7 and 293.
    assert _chi_squared(first, members) < 38
    assert len(pairs) == members * (members - 1)
    assert _chi_squared(pairs, members * (members - 1)) < 300


def _chi_squared(counted: Counter[object], cells: int) -> float:
    expected = counted.total() / cells
    return sum((count - expected) ** 2 for count in counted.values()) / expected


def test_nobody_and_one() -> None:
    assert Rendezvous([]).owners(chunks(3)) == {}
    assert Rendezvous([]).ranked(b"x" * 32) == []
    assert Rendezvous(["a"]).owners(chunks(3)) == dict.fromkeys(chunks(3), "a")
    assert Rendezvous(["a"]).ranked(b"x" * 32) == ["a"]
    assert Rendezvous(["a", "b"]).owners([]) == {}


# Never to be edited: nodes of two versions that disagree fetch everything twice.
GOLDEN_RANKED = ["node2:7891", "node1:7891", "[2001:db8::4]:7891", "10.0.0.3:80", "ünï"]
GOLDEN_OWNERS = "bf1d04c58220943fdafc4377ffe3476e058cbb00482968f6bc24a16b8f29e609"


def _golden() -> list[object]:
    rendezvous = Rendezvous(["node1:7891", "node2:7891", "10.0.0.3:80", "[2001:db8::4]:7891", "ünï"])
    owners = rendezvous.owners(chunks(1000))
    text = "\n".join(f"{chunk.hex()} {owners[chunk]}" for chunk in sorted(owners))
    return [rendezvous.ranked(bytes(range(32))), blake3(text.encode()).hexdigest()]


def test_golden_vectors() -> None:
    assert _golden() == [GOLDEN_RANKED, GOLDEN_OWNERS]


def test_another_process_computes_the_same() -> None:
    """Python's own hashes, and with them the order of sets, differ from one process to the next."""
    script = (
        "import json, sys; from blake3 import blake3; from bdnfs.cluster.owners import Rendezvous\n"
        "chunks = {blake3(b'0/%d' % index).digest() for index in range(99)}\n"
        "owners = Rendezvous({f'node{index:04}:7891' for index in range(9)}).owners(chunks)\n"
        "json.dump({chunk.hex(): owner for chunk, owner in owners.items()}, sys.stdout)"
    )
    found = json.loads(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout)
    mine = Rendezvous(nodes(9)).owners(chunks(99))
    assert found == {chunk.hex(): owner for chunk, owner in mine.items()}
