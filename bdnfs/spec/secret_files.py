"""The files of the secrets directory: written whole or not at all, readable to their owner alone."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from bdnfs.core.errors import CredentialsError
from bdnfs.spec.auth import check_secret_name, is_secret_name
from bdnfs.spec.fields import shown
from bdnfs.spec.secret import SECRET_BYTES_MAX, SecretsConfig

_PREFIX = "TRUSS_SECRET_"


class Known(NamedTuple):
    """A secret that is there, without its value. written_s: by time.time(), None in the environment."""

    name: str
    place: str
    written_s: float | None


def write_secret(config: SecretsConfig, name: str, content: bytes) -> str:
    """Make content, less one newline at its end, the secret's value; return its path.

    The directory is made if it is missing. Whoever reads meanwhile gets the old value or the new one.
    Raises SpecError for a name that can be none, CredentialsError for a value that can't, or a
    directory that can't be written or that others may write.
    """
    check_secret_name(name)
    text = _checked(name, content)
    path = os.path.join(config.directory, name)
    draft = os.path.join(config.directory, f".{name[:200]}.{secrets.token_hex(8)}")
    with _told(f"writing the secret {shown(name)}", config.directory):
        os.makedirs(config.directory, mode=0o700, exist_ok=True)
        directory = os.open(config.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _refuse_shared(directory, config.directory)
            file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                with open(file, "wb") as opened:
                    opened.write(text)
                    opened.flush()
                    os.fsync(file)
                os.rename(draft, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(draft)
                raise
            os.fsync(directory)
        finally:
            os.close(directory)
    return path


def remove_secret(config: SecretsConfig, name: str) -> str:
    """Remove a secret's file and return its path; CredentialsError if there is none."""
    path = os.path.join(config.directory, check_secret_name(name))
    with _told(f"removing the secret {shown(name)}", config.directory):
        try:
            os.unlink(path)
        except FileNotFoundError:
            raise CredentialsError(
                f"removing the secret {shown(name)}: there is no file {path}; `bdnfs secret ls` lists what is there"
            ) from None
    return path


def known_secrets(config: SecretsConfig, environment: Mapping[str, str]) -> list[Known]:
    """Return the secrets there are, by name; of the environment only those that say they are one."""
    found: dict[str, Known] = {}
    for variable in environment:
        name = variable.removeprefix(_PREFIX)
        if variable.startswith(_PREFIX) and is_secret_name(name):
            found[name] = Known(name, f"the environment variable {variable}", None)
    if not os.path.isdir(config.directory):
        return [found[name] for name in sorted(found)]
    with _told("listing secrets", config.directory):
        for name in os.listdir(config.directory):
            path = os.path.join(config.directory, name)
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(path)
                if is_secret_name(name) and stat.S_ISREG(status.st_mode):
                    found[name] = Known(name, path, status.st_mtime)
    return [found[name] for name in sorted(found)]


def _checked(name: str, content: bytes) -> bytes:
    content = content.removesuffix(b"\n").removesuffix(b"\r")
    doing = f"writing the secret {shown(name)}"
    if not content.strip():
        raise CredentialsError(f"{doing}: no value came; write it to standard input")
    if len(content) > SECRET_BYTES_MAX:
        raise CredentialsError(f"{doing}: the value is larger than {SECRET_BYTES_MAX} bytes")
    try:
        content.decode()
    except UnicodeDecodeError:
        raise CredentialsError(f"{doing}: the value is not UTF-8 text") from None
    return content


def _refuse_shared(directory: int, path: str) -> None:
    if stat.S_IMODE(os.fstat(directory).st_mode) & 0o022:
        raise CredentialsError(
            f"the secrets directory {path} may be written by others, who could replace what is in it; "
            f"run: chmod 700 {path}"
        )


@contextlib.contextmanager
def _told(doing: str, directory: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CredentialsError(
            f"{doing}: {directory}: {error.strerror}; check secrets: {{directory: …}}"
        ) from None
    except OSError as error:
        raise CredentialsError(
            f"{doing}: {directory} can't be used: {error.strerror}; where a platform fills it, change it there, "
            "else name one of your own in the config, secrets: {directory: …}"
        ) from None
