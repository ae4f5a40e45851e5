"""A trainer's home on a node of its own: the real `trainer` command, and its jobs as they are recorded."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.commands.node import Command, Done, Node, until
from trainer.engine.directory import JobDirectory
from trainer.engine.log import read_log, without_stamp
from trainer.engine.places import give_back
from trainer.jobs.record import Job, Phase
from trainer.jobs.states import State
from trainer.jobs.store import Store

TRAINER = str(Path(sys.executable).with_name("trainer"))
WAIT_S = 90.0
_CONFIG = """
from truss_train import definitions as d
from truss.base import truss_config as t

project = d.TrainingProject(
    name={name!r},
    team_name={team!r},
    job=d.TrainingJob(
        image=d.Image(base_image="pytorch/pytorch:2"),
        priority={priority!r},
        compute=d.Compute(accelerator={accelerator}),
        weights=[t.WeightsSource(**each) for each in {weights!r}],
        runtime=d.Runtime(
            start_commands={commands!r},
            environment_variables={{{variables}}},
            {runtime}
        ),
    ),
)
"""


class Home:
    """One trainer's home: `run` and `start` call `trainer`; its node has the cache and the Hub's address."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.path = node.place / "trainer"
        self.program = [TRAINER]
        self.environment = {
            "TRAINER_HOME": str(self.path),
            "TRAINER_CONFIG": str(node.home / "trainer.yaml"),
        }
        self.configure()

    def configure(self, **settings: Any) -> None:
        """Write the trainer's config. Scratches are small, and a job that is told to end has little time."""
        content = {"scratch": "32MiB", "stop_grace": 5, "gpus": 0, "slots": 2, **settings}
        (self.node.home / "trainer.yaml").write_text(json.dumps(content))

    def config(
        self,
        *commands: str,
        weights: Sequence[dict[str, Any]] = (),
        name: str = "project",
        team: str | None = None,
        priority: int | None = None,
        accelerator: str = "None",
        variables: str = "",
        runtime: str = "",
        files: dict[str, str] | None = None,
    ) -> Path:
        """Write a config.py into a directory of its own; return its path. variables, runtime: Python."""
        directory = self.node.place / "projects" / f"{len(list(self.node.place.glob('projects/*')))}"
        directory.mkdir(parents=True)
        for path, text in (files or {}).items():
            (directory / path).write_text(text)
        content = _CONFIG.format(
            name=name, team=team, priority=priority, accelerator=accelerator, weights=list(weights),
            commands=list(commands), variables=variables, runtime=runtime,
        )  # fmt: skip
        (directory / "config.py").write_text(content)
        return directory / "config.py"

    # ---- commands ------------------------------------------------------------------------------

    def start(self, *words: object, **environment: str) -> Command:
        return self.node.start_program(*self.program, *words, **{**self.environment, **environment})

    def run(self, *words: object, code: int = 0, **environment: str) -> Done:
        """Run `trainer` with these words; fail where its exit code is another one."""
        return self.start(*words, **environment).wait(code, WAIT_S)

    def push(self, config: Path, *options: object, code: int = 0, **environment: str) -> str:
        """Push a config; return the job's id."""
        done = self.run("push", config, *options, code=code, **environment)
        said = done.err if "--tail" in options else done.out
        return said.partition("job ")[2].partition(" ")[0]

    def completes(self, config: Path, *options: object) -> str:
        """Push a config, and see its job complete; return the job's id."""
        job = self.push(config, *options)
        self.reaches(job, State.COMPLETED)
        return job

    def push_again(self, job_id: str) -> str:
        """Recreate a job, and see that one complete; return its id."""
        job = self.run("recreate", job_id).out.partition("job ")[2].partition(" ")[0]
        self.reaches(job, State.COMPLETED)
        return job

    # ---- what is recorded ----------------------------------------------------------------------

    @property
    def database(self) -> Path:
        return self.path / "trainer.sqlite"

    def job(self, job_id: str) -> Job:
        with Store(self.database) as store:
            return store.job(job_id)

    def checkpoints(self, job_id: str) -> list[dict[str, Any]]:
        """Return what `checkpoints list` says of a job."""
        return list(self.run("checkpoints", "list", job_id, "-o", "json").json)

    def phases(self, job_id: str) -> dict[str, Phase]:
        with Store(self.database) as store:
            return {phase.name: phase for phase in store.phases(job_id)}

    def directory(self, job_id: str) -> JobDirectory:
        return JobDirectory(self.path / "jobs" / job_id)

    def log(self, job_id: str) -> list[str]:
        """Return what the job's log says, without times."""
        return [without_stamp(line) for line in list(read_log(self.directory(job_id).log))]

    def reaches(self, job_id: str, state: State) -> Job:
        """Wait until a job is in a state; fail where it has ended in another."""

        def there() -> Job | None:
            job = self.job(job_id)
            assert job.state is state or not job.state.final, self.all_about(job_id)
            return job if job.state is state else None

        found: Job = until(there, f"job {job_id} to be {state}", WAIT_S)
        return found

    def says(self, job_id: str, text: str) -> None:
        """Wait until a job's log has a line that holds text."""
        until(
            lambda: any(text in line for line in self.log(job_id)), f"{text!r} in the log of {job_id}", WAIT_S
        )

    def all_about(self, job_id: str) -> str:
        """Return what there is to know when a test fails."""
        log = self.directory(job_id).supervisor_log
        supervisor = log.read_text() if log.exists() else ""
        return f"{self.job(job_id)}\n" + "\n".join(self.log(job_id)) + f"\nsupervisor:\n{supervisor}"

    # ---- processes -----------------------------------------------------------------------------

    def processes(self, module: str = "trainer.engine.") -> list[int]:
        """Return the pids of this home's processes that run a module of the engine's, by its beginning."""
        found = []
        wanted = f"TRAINER_HOME={self.path}".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                named = any(word.startswith(module.encode()) for word in words)
                if named and wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def everything_of(self, job_id: str) -> list[int]:
        """Return the pids of all processes that have the job's id in their environment: its own, and what they left."""
        found = []
        wanted = f"BT_TRAINING_JOB_ID={job_id}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if wanted in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found

    def kill(self, module: str) -> None:
        """Kill -9 what runs a module of the engine's."""
        for pid in self.processes(module):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        """End everything of this home, whatever the test left; check that nothing of it stays."""

        def ended() -> bool:
            self.kill("trainer.engine.")
            return not self.processes()

        until(ended, "the trainer's processes to end", WAIT_S)
        give_back()
