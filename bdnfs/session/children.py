"""Processes that may outlive the command that started them: a mount's daemon, a keeper of pins."""

import os
import re
import select
import subprocess
from collections.abc import Collection

# What holds a secret by its name; proxies may hold a password.
_SECRET = re.compile(
    r"HF_TOKEN|HUGGING_FACE_HUB_TOKEN|TRUSS_SECRET_.*|AWS_(SECRET_ACCESS_KEY|SESSION_TOKEN|CONTAINER_.*_TOKEN)|"
    r"AZURE_.*_(KEY|SECRET|SAS_TOKEN)",
    re.ASCII,
)
_PROXY = re.compile("(https?|all)_proxy", re.ASCII | re.IGNORECASE)


class Child(subprocess.Popen[bytes]):
    """A child that may outlive this process; that is no reason for a ResourceWarning."""

    def __del__(self) -> None:
        if self.returncode is None:
            self.poll()


# Nobody waits for them, and none may stay a zombie of a long-lived caller.
remembered: list[Child] = []


def environment_without(known: Collection[str] = ()) -> dict[str, str]:
    """Return this process's environment for a child that is to outlive it: without known values, or other secrets.

    What a daemon needs of them comes on its stdin.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not (
            _SECRET.fullmatch(name) or value.strip() in known or (_PROXY.fullmatch(name) and "@" in value)
        )
    }


def remember(child: Child) -> None:
    """Forget those that have ended, and see to this one's end some day."""
    remembered[:] = [*(each for each in remembered if each.poll() is None), child]


def says_in_time(child: Child, timeout_s: float) -> bool:
    """Say whether the child has written to its stdout, or closed it, within timeout_s."""
    assert child.stdout is not None
    return bool(select.select([child.stdout], [], [], timeout_s)[0])
