"""One switch for all suites: tests marked `long` run only with --long.

What Hypothesis tries is the same each time without it: the gate says whether a change broke something.
With it the examples are new ones; what they find is printed with a line that reproduces it.

Workers side by side each have a mount namespace of their own: a namespace that one test makes is a copy
of all that is mounted then, and would go on holding the mounts of another worker's test.
"""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from bdnfs.fs.mounts import unshare


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked long, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if item not in long]
    config.hook.pytest_deselected(items=long)


def pytest_configure(config: pytest.Config) -> None:
    """Make the profiles before the tests are defined, for they take them then."""
    # What a script starts in the background, or under nohup, ignores these, and so would all that is tested.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if hasattr(config, "workerinput") and os.geteuid() == 0:
        unshare(user=False)
    long = config.getoption("--long")
    every = settings(
        deadline=None,  # tests are judged by what they find, not by how busy the machine is
        derandomize=not long,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.register_profile("bdnfs", every)
    settings.register_profile("fuzz", every, max_examples=20_000 if long else 80)
    settings.load_profile("bdnfs")
