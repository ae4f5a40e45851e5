"""Inside the job's namespaces: `python -m trainer.engine.inside PLAN`, what `bdnfs run` becomes.

Every weight is whole and bound when this starts. It makes the overlays, commits RUNNING, and only then lets the
start commands begin, in a PID namespace where there is one: its first process is a child of this one, and when
that ends nothing of the job is left.
"""

import contextlib
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from trainer.engine.namespace import mount_proc, unshare_processes
from trainer.engine.plan import RunPlan
from trainer.engine.processes import adopt_orphans, descendants, die_with_parent
from trainer.errors import JobSecretError, PlaceError, TrainerError
from trainer.jobs.states import State
from trainer.jobs.steps import reach
from trainer.jobs.store import Store
from trainer.storage.overlay import mount_overlay

NOT_FOUND = 127
_STOPPED = 128 + signal.SIGTERM
_LAST_S = 10.0


def main(argv: list[str]) -> int:
    """Run the start commands; return their exit code, 128 + n for signal n."""
    if not die_with_parent(os.getppid()):
        return 1
    _keep_descriptors()
    try:
        plan = RunPlan.read(Path(argv[1]))
        for index, location in enumerate(plan.writable):
            mount_overlay(Path(location), Path(plan.scratch_location), str(index))
        environment = _environment(plan)
        return _start(plan, environment)
    except TrainerError as error:
        print(f"trainer: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def _keep_descriptors() -> None:
    """Hand none of this process's files on to the start commands: the run's lock is among them."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.set_inheritable(int(name), False)


def _environment(plan: RunPlan) -> dict[str, str]:
    """Return the job's variables. Secrets are read here and now, and go nowhere else.

    Raises JobSecretError where one is not to be had any more.
    """
    # A job may push another: what its own variables say is not true of that one.
    found = {name: value for name, value in os.environ.items() if not name.startswith("BT_")}
    found |= plan.variables
    found["PATH"] = _with_own_programs(found.get("PATH") or os.defpath)
    if plan.secret_variables:
        import bdnfs  # late: most jobs need none, and it takes a while

        try:
            config = bdnfs.load_config(plan.bdnfs_config, os.environ)
            for variable, name in plan.secret_variables.items():
                found[variable] = bdnfs.read_secret(name, config=config, environment=os.environ)
        except bdnfs.BdnfsError as error:
            raise JobSecretError(str(error)) from None
    return found


def _with_own_programs(path: str) -> str:
    """Add this Python's programs to a PATH, behind all others: they are found, and take nobody's place."""
    own = os.path.dirname(sys.executable)
    return path if not own or own in path.split(os.pathsep) else f"{path}{os.pathsep}{own}"


def shell_script(commands: Sequence[str]) -> str:
    """Return the start commands as one script: one shell, until the first that fails, which is named.

    No command runs as part of a condition: a `set -e` in it works as its author meant it.
    """
    said = f"trainer: start command $TRAINER_COMMAND of {len(commands)} ended with exit code $trainer_code"
    lines = [f"trap 'trainer_code=$?; [ $trainer_code -eq 0 ] || echo \"{said}\" >&2' EXIT"]
    for index, command in enumerate(commands, 1):
        lines += [
            f"TRAINER_COMMAND={index}",
            f"eval {shlex.quote(command)}",
            "trainer_code=$?",
            "[ $trainer_code -eq 0 ] || exit $trainer_code",
        ]
    return "\n".join(lines)


class _Leader:
    """The start commands' shell, and how all of the job is told to end."""

    def __init__(self, everyone: Callable[[int], None], grace_s: float) -> None:
        self._everyone, self._grace_s = everyone, grace_s
        self._ending = False

    def lead(self, plan: RunPlan, environment: dict[str, str]) -> int:
        """Start the shell, wait for it, and for orphans meanwhile; return its exit code.

        Once told to end, wait for all the others, too: a shell is gone at once, what it started may be saving its
        work. SIGTERM is blocked when this is called.
        """
        signal.signal(signal.SIGTERM, self._told)
        signal.signal(signal.SIGALRM, self._over)
        shell = os.fork()
        if shell == 0:
            _become_shell(plan, environment)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        code = 0
        while True:
            try:
                ended, status = os.waitpid(-1, 0)
            except ChildProcessError:
                return code
            if ended == shell:
                code = _exit_code(status)
                if not self._ending:
                    return code

    def _told(self, number: int, frame: FrameType | None) -> None:
        if not self._ending:
            self._ending = True
            signal.setitimer(signal.ITIMER_REAL, max(self._grace_s, 0.001), 0.1)
            self._everyone(signal.SIGTERM)

    def _over(self, number: int, frame: FrameType | None) -> None:
        self._everyone(signal.SIGKILL)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _become_shell(plan: RunPlan, environment: dict[str, str]) -> None:
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.chdir(plan.working_directory)
        shell = shutil.which("bash") or "/bin/sh"
        os.execve(shell, [os.path.basename(shell), "-c", shell_script(plan.commands)], environment)
    except OSError as error:
        print(f"trainer: starting the start commands in {plan.working_directory}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(NOT_FOUND)


def _start(plan: RunPlan, environment: dict[str, str]) -> int:
    """Commit RUNNING and lead the job, in a PID namespace if it can be."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    first = None if plan.namespace == "none" else _first_process(plan, environment)
    if not _committed(plan):
        return _STOPPED
    reach("runner:committed")
    if first is None:
        return _lead_here(plan, environment)
    pid, begin = first
    os.write(begin, b"b")
    reach("runner:begun")

    def pass_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    return _exit_code(os.waitpid(pid, 0)[1])


def _committed(plan: RunPlan) -> bool:
    """Make the job RUNNING, unless its end was asked for meanwhile, or a run of it began before."""
    with Store(Path(plan.database)) as store:
        if store.state(plan.job_id)[0] is not State.DEPLOYING:
            return False
        return store.move_unless_stopped(plan.job_id, State.RUNNING, "running")


def _first_process(plan: RunPlan, environment: dict[str, str]) -> tuple[int, int] | None:
    """Fork the first process of a PID namespace, which waits for a byte; return it and where to write that.

    None where such a namespace is not to be had, which is said.
    """
    if not _may_have_own_processes():
        print(
            "trainer: no PID namespace is to be had here; the job's processes show among the host's, and those that "
            "outlive it are found by their parents",
            file=sys.stderr,
            flush=True,
        )
        return None
    unshare_processes()
    begin_reader, begin = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(begin)
        _be_first(plan, environment, begin_reader)
    os.close(begin_reader)
    return pid, begin


def _may_have_own_processes() -> bool:
    """Try it in a child: in this process there would be no way back."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            unshare_processes()
            first = os.fork()
            if first == 0:
                mount_proc()
                os._exit(0)
            code = _exit_code(os.waitpid(first, 0)[1])
        except (PlaceError, OSError):
            pass
        finally:
            os._exit(code)
    return _exit_code(os.waitpid(child, 0)[1]) == 0


def _be_first(plan: RunPlan, environment: dict[str, str], begin: int) -> None:
    code = 1
    try:
        die_with_parent(0)  # which has no pid in here; if it is gone already, nothing is to be read below
        mount_proc()
        if os.read(begin, 1):
            code = _Leader(_everyone_here, plan.grace_s).lead(plan, environment)
    except TrainerError as error:
        print(f"trainer: {error}", file=sys.stderr)
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def _everyone_here(number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, number)  # everything in this PID namespace but its first process


def _lead_here(plan: RunPlan, environment: dict[str, str]) -> int:
    adopt_orphans()
    reach("runner:begun")
    code = _Leader(_everyone_below, plan.grace_s).lead(plan, environment)
    deadline_s = time.monotonic() + _LAST_S
    while descendants(os.getpid()) and time.monotonic() < deadline_s:
        _everyone_below(signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)
    return code


def _everyone_below(number: int) -> None:
    for pid in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
