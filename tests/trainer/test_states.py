"""The table of states: every step it allows, and none that it does not."""

import pytest

from trainer.jobs.states import ACTIVE, TRANSITIONS, IllegalTransitionError, State, check


def test_the_table_names_every_state() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {state for state in State if state.final} == {
        State.COMPLETED, State.FAILED, State.DEPLOY_FAILED, State.STOPPED, State.PREEMPTED,
    }  # fmt: skip


@pytest.mark.parametrize("found", list(State))
@pytest.mark.parametrize("wanted", list(State))
def test_what_the_table_does_not_allow_is_refused(found: State, wanted: State) -> None:
    if wanted in TRANSITIONS[found]:
        check("j", found, wanted)
    else:
        with pytest.raises(IllegalTransitionError, match=f"{found}.*{wanted}"):
            check("j", found, wanted)


def test_every_active_job_can_be_stopped_and_none_runs_before_it_is_deployed() -> None:
    for state in ACTIVE:
        assert State.STOPPED in TRANSITIONS[state]
    assert [state for state in State if State.RUNNING in TRANSITIONS[state]] == [State.DEPLOYING]
    assert [state for state in State if State.DEPLOYING in TRANSITIONS[state]] == [State.CREATED]
    assert [state for state in State if state.holds_compute] == [State.DEPLOYING, State.RUNNING]
