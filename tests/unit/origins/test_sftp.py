import logging

import paramiko
import pytest

from bdnfs.origins.sftp import _TakeOnce


def test_an_unknown_host_is_taken_once_and_may_not_change(caplog: pytest.LogCaptureFixture) -> None:
    policy = _TakeOnce()
    first, other = paramiko.ECDSAKey.generate(), paramiko.ECDSAKey.generate()
    with caplog.at_level(logging.WARNING):
        policy.missing_host_key(None, "host", first)
        policy.missing_host_key(None, "host", first)
        policy.missing_host_key(None, "[host]:22", other)
    assert [record.getMessage().split(" ")[0] for record in caplog.records] == ["host", "[host]:22"]
    assert "SHA256:" in caplog.text
    with pytest.raises(paramiko.BadHostKeyException):
        policy.missing_host_key(None, "host", other)
