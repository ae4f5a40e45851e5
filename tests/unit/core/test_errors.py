import errno
import json
import pickle

import msgspec
import pytest

from bdnfs.core import errors
from bdnfs.core.errors import UNREADABLE


def all_classes() -> list[type[errors.BdnfsError]]:
    return [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.BdnfsError)
    ]


# Documented in README.md and stable: a script may branch on them.
@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [
        (errors.BdnfsError, 1),
        (errors.SpecError, 2),
        (errors.CredentialsError, 3),
        (errors.SpaceError, 4),
        (errors.UpstreamError, 5),
        (errors.NotFoundError, 5),
        (errors.UnavailableError, 5),
        (errors.IntegrityError, 6),
        (errors.ChangedError, 6),
        (errors.DeadlineError, 7),
        (errors.MountError, 8),
        (errors.CacheError, 9),
    ],
)
def test_exit_codes_are_what_is_documented(kind: type[errors.BdnfsError], exit_code: int) -> None:
    assert kind.exit_code == exit_code


def test_no_error_leaves_with_success() -> None:
    assert all(kind.exit_code > 0 for kind in all_classes())


@pytest.mark.parametrize("kind", all_classes())
def test_a_reader_gets_an_errno_it_can_tell_causes_by(kind: type[errors.BdnfsError]) -> None:
    expected = {errors.SpaceError: errno.ENOSPC, errors.CredentialsError: errno.EACCES}
    assert errors.errno_of(kind("message")) == expected.get(kind, errno.EIO)


def test_an_unavailable_error_keeps_its_wait_across_processes() -> None:
    error = pickle.loads(pickle.dumps(errors.UnavailableError("busy", retry_after_s=3.0)))
    assert (str(error), error.retry_after_s) == ("busy", 3.0)


@pytest.mark.parametrize("data", [b"", b"\xff", b'"\\ud800', b"9" * 5000, b"[" * 100_000, b'{"a": 1'])
def test_what_no_decoder_can_read_is_one_kind_of_error(data: bytes) -> None:
    for decode in (json.loads, msgspec.json.decode):
        with pytest.raises(UNREADABLE):
            decode(data)
