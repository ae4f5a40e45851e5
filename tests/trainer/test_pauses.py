"""Whoever waits for a job looks soon at first, and costs it nothing later."""

import time

import pytest

from trainer.engine.pauses import SHORTEST_S, Pauses


def test_pauses_grow_with_the_wait_up_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    pauses = Pauses(0.5)
    assert pauses.next_s == SHORTEST_S
    now_s += 15.0
    assert SHORTEST_S < pauses.next_s < 0.5
    now_s += 86400.0
    assert pauses.next_s == 0.5
    pauses.news()
    assert pauses.next_s == SHORTEST_S
