"""The store: durable, one writer at a time, old ones brought up to date, broken ones named."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.node import ROOT
from trainer.errors import HomeError, JobError
from trainer.jobs.record import NewJob, new_id
from trainer.jobs.schema import MIGRATIONS
from trainer.jobs.states import IllegalTransitionError, State
from trainer.jobs.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "home" / "trainer.sqlite") as opened:
        yield opened


def added(store: Store, project: str = "p", team: str = "", **more: object) -> str:
    new = NewJob(id=new_id(), project=project, team=team, name="n", definition="{}", **more)  # type: ignore[arg-type]
    return store.add(new).id


def test_a_job_is_what_was_recorded_and_its_project_is_made_once(store: Store) -> None:
    first, second = added(store, gpus=2, gpu_kind="H100", priority=3, notes=("a", "b")), added(store)
    job = store.job(first)
    assert (job.state, job.gpus, job.gpu_kind, job.priority, job.notes) == (
        State.PENDING, 2, "H100", 3, ("a", "b"),
    )  # fmt: skip
    assert job.project_id == store.job(second).project_id
    assert job.project_id != store.job(added(store, team="other")).project_id
    assert [each.id for each in store.jobs()][:2] == [first, second]
    with pytest.raises(JobError, match=r"no job 'x'.*trainer view"):
        store.job("x")


def test_a_project_is_found_by_name_or_id_and_two_of_one_name_are_told_apart(store: Store) -> None:
    added(store, "one")
    assert store.project("one") == store.project(store.project("one").id)
    added(store, "one", team="t")
    with pytest.raises(JobError, match=r"several projects.*team t"):
        store.project("one")
    with pytest.raises(JobError, match="no project 'two'"):
        store.project("two")


def test_its_way_is_recorded_and_the_table_is_kept_to(store: Store) -> None:
    job = added(store)
    store.move(job, State.CREATED, phase="resolving")
    with pytest.raises(IllegalTransitionError):
        store.move(job, State.RUNNING)
    store.move(job, State.DEPLOY_FAILED, error="no such repository")
    assert [each.state for each in store.transitions(job)] == [
        State.PENDING, State.CREATED, State.DEPLOY_FAILED,
    ]  # fmt: skip
    assert store.job(job).error == "no such repository"
    phases = store.phases(job)
    assert [phase.name for phase in phases] == ["pending", "resolving"]
    assert phases[0].ended_s == phases[1].began_s
    assert all(phase.ended_s is not None for phase in phases)


def test_a_phase_that_is_begun_again_goes_on(store: Store) -> None:
    job = added(store)
    store.begin(job, "filling")
    began_s = store.phases(job)[1].began_s
    store.moved(job, "filling", 10, {"origin": 7})
    store.begin(job, "filling")
    (_, phase) = store.phases(job)
    assert (phase.began_s, phase.ended_s, phase.total_bytes, phase.tier_bytes) == (
        began_s, None, 10, {"origin": 7},
    )  # fmt: skip


def test_nobody_runs_whose_end_was_asked_for(store: Store) -> None:
    job = added(store)
    store.move(job, State.CREATED)
    store.ready(job)
    assert store.take_turn(lambda waiting, holding: {each.id: () for each in waiting}, job)
    assert store.ask_to_stop(job) is State.DEPLOYING
    assert not store.move_unless_stopped(job, State.RUNNING, "running")
    assert store.state(job) == (State.DEPLOYING, True)
    store.move(job, State.STOPPED)
    stopped_s = store.job(job).stop_requested_s
    assert store.ask_to_stop(job) is State.STOPPED
    assert store.job(job).stop_requested_s == stopped_s


def test_only_a_waiting_job_is_changed(store: Store) -> None:
    job = added(store)
    assert store.change(job, priority=7).priority == 7
    assert store.change(job, availability="spot").availability == "spot"
    store.move(job, State.STOPPED)
    with pytest.raises(JobError, match="STOPPED"):
        store.change(job, priority=1)


def test_a_project_with_an_active_job_is_not_deleted(store: Store) -> None:
    job = added(store)
    project = store.job(job).project_id
    with pytest.raises(JobError, match=rf"{job} \(PENDING\).*trainer stop"):
        store.delete_project(project)
    store.move(job, State.STOPPED)
    store.delete_project(project)
    assert store.jobs() == []
    assert store.projects() == []
    with pytest.raises(JobError):
        store.job(job)


def test_what_was_recorded_outlives_a_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / "trainer.sqlite"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from trainer.jobs.store import Store; from trainer.jobs.record import NewJob\n"
        "from trainer.jobs.states import State\n"
        "store = Store(Path(sys.argv[1]))\n"
        "store.add(NewJob(id='j', project='p', team='', name='n', definition='{}'))\n"
        "store.move('j', State.CREATED)\n"
        "store._db.execute('BEGIN IMMEDIATE')\n"
        "store._db.execute(\"UPDATE jobs SET state = 'RUNNING'\")\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    with Store(path) as store:
        assert store.job("j").state is State.CREATED


def test_it_is_this_users_alone(store: Store) -> None:
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert store.path.parent.stat().st_mode & 0o777 == 0o700


def test_a_newer_or_broken_store_is_named(tmp_path: Path) -> None:
    newer = tmp_path / "newer.sqlite"
    database = sqlite3.connect(newer)
    database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    database.close()
    with pytest.raises(HomeError, match=r"newer trainer.*TRAINER_HOME"):
        Store(newer)
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(os.urandom(8192))
    with pytest.raises(HomeError, match=str(broken)):
        Store(broken)


def test_an_older_store_is_brought_up_to_date_with_its_jobs(tmp_path: Path) -> None:
    path = tmp_path / "trainer.sqlite"
    database = sqlite3.connect(path)
    database.executescript(MIGRATIONS[0])
    database.execute("INSERT INTO projects VALUES ('p', 'name', '', 1.0)")
    database.execute(
        "INSERT INTO jobs (id, project_id, name, state, definition, gpus, gpu_kind, priority, retry_count,"
        " availability, notes, created_s, updated_s)"
        " VALUES ('j', 'p', 'n', 'RUNNING', '{}', 0, '', 0, 0, 'dedicated', '[]', 1.0, 1.0)"
    )
    database.execute("PRAGMA user_version = 1")
    database.commit()
    database.close()
    with Store(path) as store:
        assert store.job("j").released_s is None
        store.release("j", "syncing")
        assert store.job("j").released_s is not None
        assert store.queue() == ([], [])  # its slot is free
    with Store(path) as store:
        assert store.job("j").state is State.RUNNING


def test_many_writers_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "trainer.sqlite"
    code = (
        "import sys; from pathlib import Path\n"
        "from trainer.jobs.store import Store; from trainer.jobs.record import NewJob\n"
        "store = Store(Path(sys.argv[1]))\n"
        "for i in range(20):\n"
        "    store.add(NewJob(id=sys.argv[2] + str(i), project='p', team='', name='n', definition='{}'))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, path, name], cwd=ROOT) for name in "abc"]
    assert [writer.wait(90) for writer in writers] == [0, 0, 0]
    with Store(path) as store:
        assert len(store.jobs()) == 60
        assert len(store.projects()) == 1
