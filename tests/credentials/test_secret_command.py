"""`bdnfs secret`: what is set is there whole, for its owner alone; no command says a value."""

import json
import os
import pty
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from bdnfs.core.errors import CredentialsError
from bdnfs.spec.secret import SECRET_BYTES_MAX, SecretsConfig, read_secret
from bdnfs.spec.secret_files import known_secrets, remove_secret, write_secret
from tests.commands.node import Done, Node, until

VALUE = b"hunter2-of-this-test"


@pytest.fixture
def directory(node: Node) -> Path:
    """The node's secrets directory; it is not there yet."""
    found = node.home / "deep" / "secrets"
    node.configure(secrets={"directory": str(found)})
    return found


def call(node: Node, *words: str, value: bytes = b"", code: int = 0) -> Done:
    path = node.place / "value"
    path.write_bytes(value)
    with path.open("rb") as file:
        done = node.start_program(*node.program, "secret", *words, how={"stdin": file}).wait(code)
    assert VALUE.decode() not in done.out + done.err
    return done


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_set_ls_rm(node: Node, directory: Path) -> None:
    assert "no secrets" in call(node, "ls").out
    done = call(node, "set", "hf_token", value=VALUE + b"\n")
    assert str(directory / "hf_token") in done.out
    assert (directory / "hf_token").read_bytes() == VALUE
    assert (mode(directory / "hf_token"), mode(directory)) == (0o600, 0o700)
    call(node, "set", "hf_token", value=VALUE + b"\n\n")
    assert (directory / "hf_token").read_bytes() == VALUE + b"\n"
    assert os.listdir(directory) == ["hf_token"]
    assert call(node, "ls").out.startswith("hf_token  written ")
    (item,) = json.loads(call(node, "ls", "--json").out)["secrets"]
    assert (item["name"], item["from"]) == ("hf_token", str(directory / "hf_token"))
    assert 0 <= item["age_s"] < 3600
    assert str(directory / "hf_token") in call(node, "rm", "hf_token").out
    assert os.listdir(directory) == []
    assert "bdnfs secret ls" in call(node, "rm", "hf_token", code=3).error


def test_a_file_hides_the_variable_of_its_name(node: Node, directory: Path) -> None:
    call(node, "set", "both", value=VALUE)
    variables = {"TRUSS_SECRET_both": "x", "TRUSS_SECRET_only": "x", "TRUSS_SECRET_": "x"}
    found = node.run("secret", "ls", "--json", **variables).json["secrets"]
    assert [(item["name"], item["from"], item["age_s"] is None) for item in found] == [
        ("both", str(directory / "both"), False),
        ("only", "the environment variable TRUSS_SECRET_only", True),
    ]


@pytest.mark.parametrize("value", [b"", b"\n", b" \n", b"\xff\xfe", b"x" * (SECRET_BYTES_MAX + 1)])
def test_what_is_no_value_changes_nothing(tmp_path: Path, value: bytes) -> None:
    config = SecretsConfig(str(tmp_path / "s"))
    write_secret(config, "name", b"before")
    with pytest.raises(CredentialsError, match="writing the secret 'name'"):
        write_secret(config, "name", value)
    assert read_secret(config, "name", {}).value == "before"
    assert os.listdir(tmp_path / "s") == ["name"]


def test_names_and_arguments_that_are_refused(node: Node, directory: Path) -> None:
    for name in ("../x", ".x", "a/b", "a b"):
        assert "can't name a secret" in call(node, "set", name, value=VALUE, code=2).error
        call(node, "rm", name, code=2)
    done = call(node, "set", "name", VALUE.decode(), code=2)
    assert "standard input" in done.err
    assert not directory.exists()


def test_on_a_terminal_the_value_is_asked_for_and_not_echoed(node: Node, directory: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        command = node.start_program(*node.program, "secret", "set", "typed", how={"stdin": theirs})
        until(lambda: "Value of typed" in command.err, "the prompt")
        os.write(ours, VALUE + b"\n")
        done = command.wait()
        os.set_blocking(ours, False)
        try:
            echoed = os.read(ours, 1000)
        except BlockingIOError:
            echoed = b""
    finally:
        os.close(theirs)
        os.close(ours)
    assert VALUE not in echoed + done.err.encode()
    assert (directory / "typed").read_bytes() == VALUE


def test_whoever_reads_meanwhile_sees_the_old_or_the_new(tmp_path: Path) -> None:
    config = SecretsConfig(str(tmp_path / "s"))
    values = [letter * 20_000 for letter in "abc"]
    write_secret(config, "name", values[0].encode())
    over = threading.Event()

    def write() -> None:
        for number in range(60):
            write_secret(config, "name", values[number % 3].encode())
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not over.is_set():
        assert read_secret(config, "name", {}).value in values
    writer.join()


def test_a_link_is_replaced_and_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "s").mkdir(mode=0o700)
    (tmp_path / "s" / "name").symlink_to(tmp_path / "victim")
    config = SecretsConfig(str(tmp_path / "s"))
    write_secret(config, "name", VALUE)
    assert (tmp_path / "victim").read_text() == "mine"
    (tmp_path / "s" / "link").symlink_to(tmp_path / "victim")
    remove_secret(config, "link")
    assert (tmp_path / "victim").read_text() == "mine"


def test_directories_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(CredentialsError, match=f"chmod 700 {shared}"):
        write_secret(SecretsConfig(str(shared)), "name", VALUE)
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "s"):
        with pytest.raises(CredentialsError, match=str(path)):
            write_secret(SecretsConfig(str(path)), "name", VALUE)
        assert known_secrets(SecretsConfig(str(path)), {}) == []
    (shared / "name").mkdir()
    shared.chmod(0o700)
    with pytest.raises(CredentialsError, match=str(shared)):
        write_secret(SecretsConfig(str(shared)), "name", VALUE)
    assert os.listdir(shared) == ["name"]


def test_only_what_can_be_a_secret_is_listed(tmp_path: Path) -> None:
    """As Kubernetes lays them out: links by way of a hidden directory."""
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "token").write_text("x")
    (tmp_path / "token").symlink_to("..data/token")
    (tmp_path / "gone").symlink_to("..data/none")
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert [item.name for item in known_secrets(SecretsConfig(str(tmp_path)), {})] == ["token"]


def test_the_program_has_no_value_in_its_arguments(node: Node, directory: Path) -> None:
    ours, theirs = os.pipe()
    command = node.start_program(*node.program, "secret", "set", "slow", how={"stdin": ours})
    os.close(ours)
    os.write(theirs, VALUE)
    seen = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    os.close(theirs)
    command.wait()
    assert VALUE.decode() not in seen
    assert (directory / "slow").read_bytes() == VALUE
