"""With --long each parser is given an hour."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        for item in items:
            if "tests/fuzz/" in item.path.as_posix():
                item.add_marker(pytest.mark.timeout(3600))
