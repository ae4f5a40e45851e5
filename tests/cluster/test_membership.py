"""The list of members that never changes, and what a member may say of itself."""

from typing import Any

import msgspec
import pytest
import trio

from bdnfs.cluster.membership import Member, Membership, StaticMembership
from bdnfs.core.errors import SpecError


def test_a_list_is_known_and_never_changes() -> None:
    async def test() -> None:
        membership: Membership = StaticMembership(["a:1", "b:1"])
        known = frozenset({Member("a:1", "a:1"), Member("b:1", "b:1")})
        assert membership.members() == known
        assert await membership.changed(frozenset()) == known
        async with membership.join(Member("a:1", "a:1", 5, "now")):
            assert membership.members() == known
        with trio.move_on_after(0.05) as waited:
            await membership.changed(known)
        assert waited.cancelled_caught

    trio.run(test)


def test_a_node_that_is_not_in_the_list_is_told_so() -> None:
    async def test() -> None:
        with pytest.raises(SpecError, match="c:1, which is not among the cluster's 2 members"):
            async with StaticMembership(["a:1", "b:1"]).join(Member("c:1", "c:1")):
                pass

    trio.run(test)


@pytest.mark.parametrize("address", ["node-1.example:80", "10.0.0.1:65535", "[2001:db8::1]:1", "a_b:7891"])
def test_addresses(address: str) -> None:
    assert Member(address, address).address == address


@pytest.mark.parametrize(
    "wrong",
    [
        *({"address": address} for address in (
            "", "a", "a:", ":1", "a:0", "a:01", "a:65536", "a:1 ", " a:1", "a b:1", "a/b:1", "a@b:1", "a:1\n", "-a:1",
            "a..b:1", "[::1:1", "[x]:1", "[10.0.0.1]:1", "::1:1", "\u0661:\u0661", "http://a:1", "a" * 254 + ":1",
        )),
        *({"name": name} for name in ("", "a b", "a\n", "\u00fc", "a" * 256, "\x7f")),
        {"incarnation": "a" * 65},
        {"incarnation": "a\n"},
        {"share_bytes": -1},
    ],
)  # fmt: skip
def test_what_no_node_can_be(wrong: dict[str, Any]) -> None:
    sound = {"name": "a:1", "address": "a:1", "share_bytes": 1, "incarnation": "x"}
    Member(**sound)
    with pytest.raises(ValueError, match=r"a name is|an address is|a share is"):
        Member(**(sound | wrong))
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(sound | wrong), type=Member)


def test_who_gives_nothing_owns_nothing() -> None:
    assert [Member("a:1", "a:1", share).owns for share in (0, 1, None)] == [False, True, True]
