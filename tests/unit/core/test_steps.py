from collections.abc import Iterator

import pytest

from bdnfs.core.steps import STEPS, on_step, reach


@pytest.fixture
def reached() -> Iterator[list[str]]:
    steps: list[str] = []
    on_step(steps.append)
    yield steps
    on_step(None)


def test_steps_are_named_once() -> None:
    assert len(set(STEPS)) == len(STEPS)


def test_the_hook_sees_each_step(reached: list[str]) -> None:
    reach(STEPS[0])
    reach(STEPS[-1])
    assert reached == [STEPS[0], STEPS[-1]]


def test_a_step_without_a_name_is_refused(reached: list[str]) -> None:
    with pytest.raises(ValueError, match="unknown step"):
        reach("blob:guessed")
    assert reached == []
