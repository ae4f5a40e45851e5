"""Python code in a mount namespace of its own, as a job has one."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk of one's own needs root")


def words(code: str, *arguments: object, namespace: Sequence[str] = ("--mount",)) -> list[str]:
    """Return the command that runs code in new namespaces."""
    return ["unshare", *namespace, "--", sys.executable, "-c", code, *map(str, arguments)]


def confined(code: str, *arguments: object, namespace: Sequence[str] = ("--mount",)) -> str:
    """Run code; return what it printed; fail where it fails."""
    done = subprocess.run(
        words(code, *arguments, namespace=namespace), cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
