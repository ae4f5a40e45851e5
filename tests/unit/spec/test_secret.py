import os
from pathlib import Path

import msgspec
import pytest

from bdnfs.core.errors import CredentialsError, SpecError
from bdnfs.spec.config import Secret, SecretsConfig, read_secret
from bdnfs.spec.secret import SECRET_BYTES_MAX, Secrets, take_secrets


def test_a_secret_is_never_shown() -> None:
    secret = Secret("hunter2")
    assert secret.value == "hunter2"
    for text in (repr(secret), str(secret), f"{secret}", f"{[secret]}"):
        assert "hunter2" not in text
        assert "***" in text


def test_rich_shows_no_secret_either() -> None:
    from rich.pretty import pretty_repr

    assert "hunter2" not in pretty_repr({"token": Secret("hunter2")})


def test_a_secret_travels_to_a_child_and_back() -> None:
    assert msgspec.json.decode(msgspec.json.encode(Secret("hunter2")), type=Secret) == Secret("hunter2")


def test_the_file_goes_before_the_variables(tmp_path: Path) -> None:
    config = SecretsConfig(str(tmp_path))
    environment = {"hf_token": "from-name", "TRUSS_SECRET_hf_token": "from-truss"}
    assert read_secret(config, "hf_token", {"hf_token": "from-name"}) == Secret("from-name")
    assert read_secret(config, "hf_token", environment) == Secret("from-truss")
    (tmp_path / "hf_token").write_text("from-file\n")
    assert read_secret(config, "hf_token", environment) == Secret("from-file")


def test_what_is_taken_is_read_anew_each_time_and_travels_without_being_shown(tmp_path: Path) -> None:
    environment = {"TRUSS_SECRET_variable": "hunter2", "TRUSS_SECRET_file": "hunter3", "other": "hunter4"}
    (tmp_path / "file").write_text("one")
    taken = take_secrets(SecretsConfig(str(tmp_path)), ["file", "variable"], environment)
    assert "hunter" not in f"{taken!r} {taken}"
    sent = msgspec.json.decode(msgspec.json.encode(taken), type=Secrets)
    assert sent == taken
    assert (sent.read("file"), sent.read("variable")) == (Secret("one"), Secret("hunter2"))
    (tmp_path / "file").write_text("two")
    (tmp_path / "variable").write_text("by file")
    assert (sent.read("file"), sent.read("variable")) == (Secret("two"), Secret("by file"))
    (tmp_path / "file").unlink()
    assert sent.read("file") == Secret("hunter3")
    with pytest.raises(CredentialsError, match="the secret 'other' is neither"):
        sent.read("other")


def test_a_secret_may_be_a_link_as_kubernetes_makes_them(tmp_path: Path) -> None:
    (tmp_path / "..2024").mkdir()
    (tmp_path / "..2024" / "token").write_text('{"aws_access_key_id": "x"}')
    (tmp_path / "..data").symlink_to("..2024")
    (tmp_path / "token").symlink_to("..data/token")
    assert read_secret(SecretsConfig(str(tmp_path)), "token", {}).value == '{"aws_access_key_id": "x"}'


def test_a_missing_secret_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError) as caught:
        read_secret(SecretsConfig(str(tmp_path / "none")), "token", {"other": "hunter2"})
    for part in (f"{tmp_path}/none/token", "TRUSS_SECRET_token or token"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["", "..", "a/b", "../shadow", "/etc/shadow", ".x", "a\x00"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError):
        read_secret(SecretsConfig(str(tmp_path)), name, {name: "x"})


def test_a_file_that_is_no_secret_is_an_error_not_a_reason_to_look_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "large").write_bytes(b"x" * (SECRET_BYTES_MAX + 1))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, problem in [
        ("fifo", "not a regular file"),
        ("directory", "not a regular file"),
        ("empty", "is empty in"),
        ("large", "larger than"),
        ("binary", "not UTF-8"),
    ]:
        with pytest.raises(CredentialsError, match=problem):
            read_secret(SecretsConfig(str(tmp_path)), name, {name: "from the environment"})


def test_a_variable_of_blanks_is_an_empty_secret(tmp_path: Path) -> None:
    with pytest.raises(
        CredentialsError, match="is empty in the environment variable TRUSS_SECRET_token or token"
    ):
        read_secret(SecretsConfig(str(tmp_path)), "token", {"token": "  "})
