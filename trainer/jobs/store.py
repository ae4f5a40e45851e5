"""The store of jobs: SQLite, one writer transaction for each change, durable when it returns.

What is written here is what the trainer knows after a crash; a file lock says who is alive, never a row.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from trainer.errors import HomeError, JobError
from trainer.jobs.record import Job, NewJob, Phase, Project, Transition, new_id
from trainer.jobs.schema import MIGRATIONS
from trainer.jobs.states import ACTIVE, IllegalTransitionError, State, check

BUSY_TIMEOUT_S = 30.0

_JOB = """
    SELECT jobs.*, projects.name AS project, projects.team AS team
    FROM jobs JOIN projects ON projects.id = jobs.project_id
"""
# Of two jobs that were pushed within one tick of the clock, the one recorded first goes first.
_BY_AGE = "ORDER BY jobs.created_s, jobs.rowid"

T = TypeVar("T")


class Store:
    """One connection to the jobs of one home; not for several threads at once.

    Every method raises HomeError where the database can't be used.
    """

    def __init__(self, path: Path) -> None:
        """Open the store, made or brought up to date where needed."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise HomeError(f"can't make the trainer's home {path.parent}: {error.strerror}") from None
        with self._explained():
            self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # a transition is on the disk when it returns
            self._db.execute("PRAGMA foreign_keys = ON")
            os.chmod(path, 0o600)
            self._migrate()

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _migrate(self) -> None:
        if self._version() == len(MIGRATIONS):
            return
        with self._writing():
            version = self._version()  # again: another process may have been faster
            if version > len(MIGRATIONS):
                raise HomeError(
                    f"{self.path} was written by a newer trainer (format {version}, this one knows "
                    f"{len(MIGRATIONS)}); use that one, or another $TRAINER_HOME"
                )
            for step in MIGRATIONS[version:]:
                for statement in step.split(";"):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise HomeError(f"{self.path}: {error}; is the disk full, or was the file damaged?") from None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: all of it, or nothing."""
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._explained():
            return self._db.execute(sql, values).fetchall()

    # ---- jobs ----------------------------------------------------------------------------------

    def add(self, new: NewJob) -> Job:
        """Record a job, PENDING, and its project if that is new."""
        now = time.time()
        with self._writing():
            row = self._db.execute(
                "SELECT id FROM projects WHERE name = ? AND team = ?", (new.project, new.team)
            ).fetchone()
            project_id = row["id"] if row else new_id()
            if row is None:
                self._db.execute(
                    "INSERT INTO projects VALUES (?, ?, ?, ?)", (project_id, new.project, new.team, now)
                )
            self._db.execute(
                "INSERT INTO jobs (id, project_id, name, state, definition, gpus, gpu_kind, priority, retry_count,"
                " availability, notes, created_s, updated_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    new.id,
                    project_id,
                    new.name,
                    State.PENDING,
                    new.definition,
                    new.gpus,
                    new.gpu_kind,
                    new.priority,
                    new.retry_count,
                    new.availability,
                    json.dumps(new.notes),
                    now,
                    now,
                ),
            )
            self._entered(new.id, State.PENDING, now)
            self._db.execute(
                "INSERT INTO phases (job_id, name, began_s) VALUES (?, 'pending', ?)", (new.id, now)
            )
        return self.job(new.id)

    def job(self, job_id: str) -> Job:
        """Return the job called job_id; raise JobError if there is none."""
        rows = self._all(f"{_JOB} WHERE jobs.id = ?", (job_id,))
        if not rows:
            raise JobError(f"there is no job {job_id!r} here; `trainer view` lists them")
        return _job(rows[0])

    def jobs(self, *, project_id: str | None = None, active: bool = False) -> list[Job]:
        """Return jobs by age; of one project, and only those that have not ended, if so asked."""
        where, values = ["1"], list[str]()
        if project_id is not None:
            where, values = [*where, "project_id = ?"], [project_id]
        if active:
            where, values = [*where, f"state IN ({', '.join('?' * len(ACTIVE))})"], [*values, *ACTIVE]
        return [_job(row) for row in self._all(f"{_JOB} WHERE {' AND '.join(where)} {_BY_AGE}", values)]

    def state(self, job_id: str) -> tuple[State, bool]:
        """Return the job's state, and whether its end was asked for."""
        rows = self._all("SELECT state, stop_requested_s FROM jobs WHERE id = ?", (job_id,))
        if not rows:
            raise JobError(f"there is no job {job_id!r} any more")
        return State(rows[0]["state"]), rows[0]["stop_requested_s"] is not None

    def move(
        self,
        job_id: str,
        to: State,
        *,
        error: str = "",
        exit_code: int | None = None,
        phase: str | None = None,
    ) -> None:
        """Bring a job into another state. phase: the one that begins with it; others end.

        Raises IllegalTransitionError where the table does not allow it.
        """
        with self._writing():
            self._move(job_id, to, error=error, exit_code=exit_code, phase=phase)

    def move_unless_stopped(self, job_id: str, to: State, phase: str) -> bool:
        """As move, in the same transaction in which nobody has asked for the job's end; say whether."""
        with self._writing():
            row = self._db.execute("SELECT stop_requested_s FROM jobs WHERE id = ?", (job_id,)).fetchone()
            if row is None or row["stop_requested_s"] is not None:
                return False
            self._move(job_id, to, phase=phase)
            return True

    def _move(
        self,
        job_id: str,
        to: State,
        *,
        error: str = "",
        exit_code: int | None = None,
        phase: str | None = None,
    ) -> None:
        now = time.time()
        row = self._db.execute("SELECT state FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise JobError(f"there is no job {job_id!r} any more")
        check(job_id, State(row["state"]), to)
        self._db.execute(
            "UPDATE jobs SET state = ?, error = ?, exit_code = ?, updated_s = ? WHERE id = ?",
            (to, error, exit_code, now, job_id),
        )
        self._entered(job_id, to, now)
        self._begin(job_id, phase, now)

    def _entered(self, job_id: str, state: State, now: float) -> None:
        self._db.execute("INSERT INTO transitions VALUES (?, ?, ?)", (job_id, state, now))

    def take_turn(
        self, choose: Callable[[list[Job], list[Job]], dict[str, tuple[int, ...]]], job_id: str
    ) -> bool:
        """Give job_id its slot, if choose does: CREATED becomes DEPLOYING; say whether.

        choose(waiting, holding): who may start now, and with which GPUs. Decided and recorded in one transaction.
        """
        with self._writing():
            chosen = choose(*self.queue())
            if job_id not in chosen:
                return False
            self._db.execute(
                "UPDATE jobs SET gpu_indices = ? WHERE id = ?", (json.dumps(chosen[job_id]), job_id)
            )
            self._move(job_id, State.DEPLOYING, phase="fetching")
            return True

    def queue(self) -> tuple[list[Job], list[Job]]:
        """Return the jobs that wait for a slot, and those that have one; each by age."""
        jobs = [
            _job(row)
            for row in self._all(f"{_JOB} WHERE state IN ('CREATED', 'DEPLOYING', 'RUNNING') {_BY_AGE}")
        ]
        waiting = [
            job
            for job in jobs
            if job.state is State.CREATED and job.ready_s is not None and job.stop_requested_s is None
        ]
        return waiting, [job for job in jobs if job.state.holds_compute and job.released_s is None]

    def ready(self, job_id: str) -> None:
        """Say that a job waits for its slot from now on."""
        now = time.time()
        with self._writing():
            self._db.execute("UPDATE jobs SET ready_s = coalesce(ready_s, ?) WHERE id = ?", (now, job_id))
            self._begin(job_id, "queued", now)

    def release(self, job_id: str, phase: str) -> None:
        """Say that the job's commands have ended: its slot and GPUs are free, while phase goes on."""
        now = time.time()
        with self._writing():
            self._db.execute(
                "UPDATE jobs SET released_s = coalesce(released_s, ?) WHERE id = ?", (now, job_id)
            )
            self._begin(job_id, phase, now)

    def ask_to_stop(self, job_id: str) -> State:
        """Ask for a job's end; return the state it is in. One that has ended stays as it is."""
        with self._writing():
            self._db.execute(
                "UPDATE jobs SET stop_requested_s = coalesce(stop_requested_s, ?) WHERE id = ?"
                f" AND state IN ({', '.join('?' * len(ACTIVE))})",
                (time.time(), job_id, *ACTIVE),
            )
        return self.job(job_id).state

    def change(self, job_id: str, *, priority: int | None = None, availability: str | None = None) -> Job:
        """Change what a waiting job waits by; raise JobError for one that has its slot, or has ended."""
        with self._writing():
            row = self._db.execute("SELECT state FROM jobs WHERE id = ?", (job_id,)).fetchone()
            if row is None:
                raise JobError(f"there is no job {job_id!r} here; `trainer view` lists them")
            if row["state"] not in (State.PENDING, State.CREATED):
                raise JobError(
                    f"job {job_id} is {row['state']}; only a job that waits for its slot can be changed"
                )
            self._db.execute(
                "UPDATE jobs SET priority = coalesce(?, priority), availability = coalesce(?, availability),"
                " updated_s = ? WHERE id = ?",
                (priority, availability, time.time(), job_id),
            )
        return self.job(job_id)

    def note(self, job_id: str, error: str = "", sync: str | None = None) -> None:
        """Add to what is said of a job: a further error, the state of its checkpoints' sync."""
        with self._writing():
            self._db.execute(
                "UPDATE jobs SET error = CASE WHEN ? = '' THEN error WHEN error = '' THEN ?"
                " ELSE error || '; ' || ? END, sync = coalesce(?, sync) WHERE id = ?",
                (error, error, error, sync, job_id),
            )

    # ---- phases --------------------------------------------------------------------------------

    def begin(self, job_id: str, phase: str) -> None:
        """Say that a phase begins now, and so that the one before it ends. One that goes on goes on."""
        with self._writing():
            self._begin(job_id, phase, time.time())

    def _begin(self, job_id: str, phase: str | None, now: float) -> None:
        self._db.execute(
            "UPDATE phases SET ended_s = ? WHERE job_id = ? AND ended_s IS NULL AND name IS NOT ?",
            (now, job_id, phase),
        )
        if phase is not None:
            self._db.execute(
                "INSERT INTO phases (job_id, name, began_s) VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET ended_s = NULL",
                (job_id, phase, now),
            )

    def moved(self, job_id: str, phase: str, total_bytes: int, tier_bytes: dict[str, int]) -> None:
        """Record what a phase has moved so far."""
        with self._writing():
            self._db.execute(
                "UPDATE phases SET total_bytes = ?, tier_bytes = ? WHERE job_id = ? AND name = ?",
                (total_bytes, json.dumps(tier_bytes), job_id, phase),
            )

    def phases(self, job_id: str) -> list[Phase]:
        """Return a job's phases, in their order."""
        return [
            Phase(
                row["name"], row["began_s"], row["ended_s"], row["total_bytes"], json.loads(row["tier_bytes"])
            )
            for row in self._all("SELECT * FROM phases WHERE job_id = ? ORDER BY began_s, rowid", (job_id,))
        ]

    def transitions(self, job_id: str) -> list[Transition]:
        """Return a job's way so far."""
        rows = self._all("SELECT * FROM transitions WHERE job_id = ? ORDER BY rowid", (job_id,))
        return [Transition(State(row["state"]), row["at_s"]) for row in rows]

    # ---- projects ------------------------------------------------------------------------------

    def projects(self) -> list[Project]:
        """Return every project, by age."""
        return [
            Project(row["id"], row["name"], row["team"], row["created_s"])
            for row in self._all("SELECT * FROM projects ORDER BY created_s, rowid")
        ]

    def project(self, named: str) -> Project:
        """Return the project with this id or name; raise JobError if there is none, or several teams have one."""
        found = [each for each in self.projects() if named in (each.id, each.name)]
        if len(found) == 1:
            return found[0]
        if not found:
            raise JobError(f"there is no project {named!r} here; `trainer view` lists what there is")
        ids = ", ".join(f"{each.id} (team {each.team or 'none'})" for each in found)
        raise JobError(f"several projects are called {named!r}; name one by its id: {ids}")

    def delete_project(self, project_id: str) -> None:
        """Forget a project and its jobs; raise JobError while one of them has not ended."""
        with self._writing():
            marks = ", ".join("?" * len(ACTIVE))
            active = self._db.execute(
                f"SELECT id, state FROM jobs WHERE project_id = ? AND state IN ({marks})",
                (project_id, *ACTIVE),
            ).fetchall()
            if active:
                named = ", ".join(f"{row['id']} ({row['state']})" for row in active)
                raise JobError(
                    f"the project has jobs that have not ended: {named}; `trainer stop` them first"
                )
            self._db.execute("DELETE FROM projects WHERE id = ?", (project_id,))


def _job(row: sqlite3.Row) -> Job:
    fields = {name: row[name] for name in row.keys()}  # noqa: SIM118 - iterating a Row gives its values
    return Job(
        **{
            **fields,
            "state": State(fields["state"]),
            "gpu_indices": tuple(json.loads(fields["gpu_indices"])),
            "notes": tuple(json.loads(fields["notes"])),
        }
    )


__all__ = ["IllegalTransitionError", "Store"]
