"""An interrupt ends a command, whatever it waits for, but never in the middle of an import or of a destructor."""

import subprocess
import sys

import pytest

# A module whose import goes on while the signal comes, and says whether it was left to end.
CODE = """
import importlib.abc, importlib.util, os, signal, sys, time
from bdnfs.session.interrupts import Interrupts

class Slow(importlib.abc.Loader, importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self) if name == "slow_to_import" else None
    def exec_module(self, module):
        os.kill(os.getpid(), int(sys.argv[1]))
        sum(range(100_000))
        print("imported", flush=True)

class Dying:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        sum(range(100_000))
        print("deleted", flush=True)

sys.meta_path.insert(0, Slow())
interrupts = Interrupts()
try:
    with interrupts.taken():
        if sys.argv[2] == "import":
            import slow_to_import
        else:
            Dying()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            pass
except KeyboardInterrupt:
    print("interrupted by", interrupts.number, flush=True)
"""


@pytest.mark.parametrize("number", ["2", "15", "1"])
@pytest.mark.parametrize(("what", "said"), [("import", "imported"), ("destructor", "deleted")])
def test_it_waits_for(what: str, said: str, number: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, number, what], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"{said}\ninterrupted by {number}\n"
    assert done.stderr == ""


# The kernel gives a process's signal to any of its threads; Python only notes it there, and the main one sleeps on.
TAKEN_BY_ANOTHER = """
import signal, sys, threading
from bdnfs.session.interrupts import Interrupts

interrupts, blocked = Interrupts(), threading.Lock()
blocked.acquire()

def take():
    signal.pthread_kill(threading.get_ident(), int(sys.argv[1]))

try:
    with interrupts.taken():
        threading.Timer(0.5, take).start()
        blocked.acquire()
except KeyboardInterrupt:
    print("interrupted by", interrupts.number, flush=True)
"""


@pytest.mark.parametrize("number", ["2", "15", "1"])
def test_one_that_another_thread_takes_ends_the_wait(number: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TAKEN_BY_ANOTHER, number],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"interrupted by {number}\n"
    assert done.stderr == ""
