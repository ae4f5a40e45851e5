"""Whose turn it is: by priority, then age; never more than there are slots and GPUs."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.engine.usage import GpuUsage, parse_usage
from trainer.errors import NoGpuError
from trainer.jobs.record import Job, NewJob
from trainer.jobs.states import State
from trainer.jobs.store import Store
from trainer.scheduling.gpus import Gpu, machine_gpus, parse_smi
from trainer.scheduling.local import LocalMachine, choose

GPUS = tuple(Gpu(index, "NVIDIA H100 80GB HBM3") for index in range(4))


def job(
    name: str, *, priority: int = 0, created_s: float = 0, gpus: int = 0, held: Sequence[int] = ()
) -> Job:
    return Job(
        id=name, project_id="p", project="p", team="", name=name, definition="{}", gpus=gpus, gpu_kind="",
        state=State.CREATED, gpu_indices=tuple(held), priority=priority, retry_count=0, availability="dedicated",
        notes=(), created_s=created_s, updated_s=0, ready_s=9, stop_requested_s=None, error="", exit_code=None,
        sync="",
    )  # fmt: skip


def test_priority_goes_first_then_age() -> None:
    old, young, urgent = (
        job("old", created_s=1),
        job("young", created_s=2),
        job("urgent", priority=1, created_s=3),
    )
    assert list(choose([young, old, urgent], [], 3, ())) == ["urgent", "old", "young"]
    assert list(choose([young, old, urgent], [], 1, ())) == ["urgent"]
    assert list(choose([young, old, urgent], [job("x")], 2, ())) == ["urgent"]
    assert not choose([young, old, urgent], [job("x"), job("y")], 2, ())


def test_gpus_are_given_once_and_nobody_passes_who_is_first() -> None:
    large, small = job("large", gpus=4, created_s=1), job("small", gpus=1, created_s=2)
    assert choose([large, small], [job("x", held=[1])], 9, GPUS) == {}
    assert choose([small], [job("x", held=[0, 1])], 9, GPUS) == {"small": (2,)}
    assert choose([large], [], 9, GPUS) == {"large": (0, 1, 2, 3)}


@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 5), st.integers(0, 4)), max_size=8),
    st.integers(1, 4),
)
def test_never_more_than_there_is(wanted: list[tuple[int, int, int]], slots: int) -> None:
    waiting = [
        job(str(index), priority=priority, created_s=age, gpus=gpus)
        for index, (priority, age, gpus) in enumerate(wanted)
    ]
    chosen = choose(waiting, [], slots, GPUS)
    given_away = [index for indices in chosen.values() for index in indices]
    assert len(given_away) == len(set(given_away)) <= len(GPUS)
    assert len(chosen) <= slots
    assert all(len(chosen[each.id]) == each.gpus for each in waiting if each.id in chosen)


def test_a_turn_is_taken_by_one_alone(tmp_path: Path) -> None:
    with Store(tmp_path / "trainer.sqlite") as store:
        machine = LocalMachine(store, 1, GPUS)
        for name, priority in (("a", 0), ("b", 5)):
            store.add(
                NewJob(id=name, project="p", team="", name=name, definition="{}", gpus=1, priority=priority)
            )
            store.move(name, State.CREATED)
        assert not machine.acquire(store.job("a"))  # it waits for nothing yet
        store.ready("a")
        store.ready("b")
        assert not machine.acquire(store.job("a"))
        assert machine.acquire(store.job("b"))
        assert store.job("b").gpu_indices == (0,)
        assert store.job("b").state is State.DEPLOYING
        assert not machine.acquire(store.job("a"))
        store.move("b", State.DEPLOY_FAILED)
        assert machine.acquire(store.job("a"))


def test_there_is_a_slot_for_each_gpu_and_one_without(tmp_path: Path) -> None:
    with Store(tmp_path / "trainer.sqlite") as store:
        for number in range(6):
            store.add(NewJob(id=str(number), project="p", team="", name="n", definition="{}"))
            store.move(str(number), State.CREATED)
            store.ready(str(number))
        taken = [LocalMachine(store, None, GPUS).acquire(job) for job in store.jobs()]
        assert taken == [True] * 4 + [False] * 2
        assert not LocalMachine(store, None, ()).acquire(store.job("4"))


def test_only_jobs_near_their_turn_need_a_process_that_waits(tmp_path: Path) -> None:
    with Store(tmp_path / "trainer.sqlite") as store:
        for number in range(6):
            store.add(
                NewJob(id=str(number), project="p", team="", name="n", definition="{}", priority=-number)
            )
            store.move(str(number), State.CREATED)
            store.ready(str(number))
        machine = LocalMachine(store, 2, ())
        assert [machine.is_near(job) for job in store.jobs()] == [True] * 4 + [False] * 2
        store.change("5", priority=1)
        assert machine.is_near(store.job("5"))
        store.ask_to_stop("4")
        assert machine.is_near(store.job("4"))  # somebody has to end it


def test_gpus_that_are_not_here_are_named() -> None:
    machine = LocalMachine(None, 1, GPUS)  # type: ignore[arg-type] - it only checks
    machine.check(4, "H100")
    machine.check(1, "")
    with pytest.raises(NoGpuError, match=r"5 × H100.*NVIDIA H100 80GB HBM3 \(0\).*--no-gpu-check"):
        machine.check(5, "H100")
    with pytest.raises(NoGpuError, match="1 × B200"):
        machine.check(1, "B200")
    with pytest.raises(NoGpuError, match="GPUs: none"):
        LocalMachine(None, 1, ()).check(1, "T4")  # type: ignore[arg-type]


def test_kinds_are_told_by_the_names_that_nvidia_gives() -> None:
    named = {
        "NVIDIA A100-SXM4-40GB": ("A100", "A100_40GB"),
        "NVIDIA H100 80GB HBM3": ("H100",),
        "NVIDIA H200": ("H200",),
        "Tesla V100-SXM2-16GB": ("V100",),
        "NVIDIA RTX PRO 6000 Blackwell Server Edition": ("RTX_PRO_6000",),
        "NVIDIA L40S": ("L40S",),
        "NVIDIA L4": ("L4",),
    }
    kinds = sorted({kind for found in named.values() for kind in found})
    for name, expected in named.items():
        assert [kind for kind in kinds if Gpu(0, name).is_a(kind)] == sorted(expected), name
    assert Gpu(0).is_a("H100")


def test_nvidia_smi_is_read() -> None:
    assert parse_smi(["0, NVIDIA H200", "1, NVIDIA H200", "", "No devices were found"]) == (
        Gpu(0, "NVIDIA H200"), Gpu(1, "NVIDIA H200"),
    )  # fmt: skip
    assert machine_gpus(0) == ()


def test_what_nvidia_smi_says_of_use_is_read_for_the_jobs_own_gpus() -> None:
    said = "0, 97, 40536, 81559\n1, 0, 3, 81559\n2, [N/A], 3, 81559\n"
    assert parse_usage(said, (0, 2)) == (GpuUsage(0, 97, 40536, 81559),)
    assert parse_usage("", (0,)) == ()
