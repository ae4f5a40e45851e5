"""Secrets: values that no error, log or repr shows, and where a named one is found."""

import os
import stat
from collections.abc import Iterable, Mapping

import msgspec

from bdnfs.core.errors import CredentialsError
from bdnfs.core.units import KIB
from bdnfs.spec.auth import check_secret_name
from bdnfs.spec.fields import shown

# A Kubernetes secret may hold 1 MiB; credentials of any store are a few KiB.
SECRET_BYTES_MAX = 64 * KIB


class Secret(msgspec.Struct, frozen=True):
    """A text that is shown as `***` wherever it is printed; `value` is the text itself.

    msgspec encodes the value: encode one only into a pipe to a child of ours.
    """

    value: str

    def __repr__(self) -> str:
        return "***"

    # msgspec's own would show the value to rich's tracebacks and pretty printer.
    def __rich_repr__(self) -> list[str]:  # type: ignore[override]
        return ["***"]


class SecretsConfig(msgspec.Struct, frozen=True):
    """The directory in which each file is a secret, named like it; it need not exist."""

    directory: str


class Secrets(msgspec.Struct, frozen=True):
    """The secrets that the sources of one job name, to be had for as long as the job lasts.

    directory: where their files lie; a file is read anew each time, for it may be replaced
    given:     what the environment held of them, by the secret's name: it goes to a daemon with its job
    """

    directory: str = ""
    given: dict[str, Secret] = {}

    def read(self, name: str) -> Secret:
        """Return the secret as it is now: the file, else what was given.

        Blanks and newlines around the value are dropped. Raises CredentialsError saying where it looked.
        """
        path = os.path.join(self.directory, check_secret_name(name))
        value = read_secret_file(path, f"the secret {shown(name)}")
        variables = " or ".join(_variables(name))
        if value is None and name not in self.given:
            raise CredentialsError(
                f"the secret {shown(name)} is neither the file {path} nor the environment variable {variables}; "
                f"set it with `bdnfs secret set {name}`, or name another directory in the config, "
                "secrets: {directory: …}"
            )
        found = path if value is not None else f"the environment variable {variables}"
        value = self.given[name].value if value is None else value
        if not value:
            raise CredentialsError(f"the secret {shown(name)} is empty in {found}; write its value there")
        return Secret(value)


def take_secrets(config: SecretsConfig, names: Iterable[str], environment: Mapping[str, str]) -> Secrets:
    """Return the secrets called names; raise CredentialsError for the first that is nowhere.

    Of the environment, `TRUSS_SECRET_<name>` goes before `<name>`; a file goes before both.
    """
    given: dict[str, Secret] = {}
    names = sorted(set(names))
    for name in names:
        variable = next((each for each in _variables(name) if environment.get(each)), None)
        if variable is not None:
            given[name] = Secret(environment[variable].strip())
    secrets = Secrets(config.directory, given)
    for name in names:
        secrets.read(name)
    return secrets


def read_secret(config: SecretsConfig, name: str, environment: Mapping[str, str]) -> Secret:
    """Return the secret called name as it is now; raises as `take_secrets` does."""
    return take_secrets(config, [name], environment).read(name)


def _variables(name: str) -> tuple[str, str]:
    return f"TRUSS_SECRET_{name}", name


def read_secret_file(path: str, what: str) -> str | None:
    """Return the stripped text in path, None if there is no file; raise CredentialsError if unreadable."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CredentialsError(
            f"can't read {what} from {path}: {error.strerror}; is it yours to read?"
        ) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CredentialsError(f"can't read {what} from {path}: it is not a regular file")
    with open(fd, "rb") as file:
        content = file.read(SECRET_BYTES_MAX + 1)
    if len(content) > SECRET_BYTES_MAX:
        raise CredentialsError(f"can't read {what} from {path}: it is larger than {SECRET_BYTES_MAX} bytes")
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise CredentialsError(f"can't read {what} from {path}: it is not UTF-8 text") from None


def plain_token(name: str, secret: Secret) -> str:
    """Return a secret that is a mere token; CredentialsError, with what errors call it, if it is something else."""
    if secret.value.startswith("{"):
        raise CredentialsError(f"{name}: is JSON, but this source takes a plain token; write only that")
    if not all(33 <= ord(char) < 127 for char in secret.value):
        raise CredentialsError(
            f"{name}: holds blanks or characters that no plain token has; set it again with `bdnfs secret set`"
        )
    return secret.value


def header_safe(value: str, name: str) -> Secret | None:
    """Return value as a header's token, None if it is empty; raise CredentialsError if it can't be one."""
    value = value.strip()
    if not value:
        return None
    if not all(33 <= ord(char) < 127 for char in value):
        raise CredentialsError(
            f"{name} holds blanks or characters that no token has; set it again, or unset it"
        )
    return Secret(value)
