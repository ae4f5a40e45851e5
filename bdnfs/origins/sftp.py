"""SFTP: fsspec's filesystem, with deadlines, known hosts and requests that overlap."""

import contextlib
import errno
import io
import logging
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import paramiko
from fsspec.implementations.sftp import SFTPFileSystem

from bdnfs.core.errors import UnavailableError
from bdnfs.core.ranges import chunk_range
from bdnfs.manifest.model import FileEntry
from bdnfs.origins.generic import GenericOrigin, check

# sshd lets 10 connections wait for their login at once (MaxStartups); leave room for others.
CONNECTIONS_MAX = 4
_CONNECT_TIMEOUT_S = 10.0
_PIECE_BYTES = 256 * 1024
_LOG = logging.getLogger(__name__)

# It logs whole tracebacks of what we report in our own words.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class SftpOrigin(GenericOrigin):
    """A directory or file of a host that speaks SSH.

    secret: a private key in PEM or OpenSSH form, or a password; without one the agent's and the
    user's own keys are tried. A host that known_hosts has another key for is refused; one that it
    doesn't know is taken, with a warning.
    """

    def __init__(self, url: str, secret: str | None, stall_s: float) -> None:
        options: dict[str, Any] = {"stall_s": stall_s, "host_key_policy": _TakeOnce()}
        if secret and "PRIVATE KEY-----" in secret:
            options["pkey"] = _private_key(secret)
        elif secret:
            options |= {"password": secret, "look_for_keys": False, "allow_agent": False}
        super().__init__(url, options, CONNECTIONS_MAX, stall_s * 4)

    def _connect(self) -> Any:
        options = {**SFTPFileSystem._get_kwargs_from_urls(self._url), **self._options}
        fs = _FileSystem(skip_instance_cache=True, **options)
        return fs, SFTPFileSystem._strip_protocol(self._url)

    def _disconnect(self, instance: Any) -> None:
        instance[0].client.close()

    def _fill(self, fs: Any, doing: str, path: str, entry: FileEntry, start: int, into: memoryview) -> None:
        with fs.ftp.open(path, "rb") as handle:
            # The handle's own state: a file put into its place has another handle.
            check(doing, entry, fs._decode_stat(handle.stat()))
            offsets = range(0, len(into), _PIECE_BYTES)
            got = 0
            handle._prefetch_thread = _Quiet(handle._prefetch_thread)
            for piece in handle.readv([(start + at, min(_PIECE_BYTES, len(into) - at)) for at in offsets]):
                into[got : got + len(piece)] = piece
                got += len(piece)
            check(doing, entry, fs._decode_stat(handle.stat()))
            check(doing, entry, fs.info(path))
        if got != len(into):
            raise UnavailableError(f"{doing}: {got} of {len(into)} bytes came; try again")

    def stream(self, revision: str | None, entry: FileEntry) -> Iterator[memoryview]:
        """Yield the whole file in ranges, each of which is checked."""
        for index in range(entry.chunks):
            start, stop = chunk_range(entry.size, index)
            piece = memoryview(bytearray(stop - start))
            self.read(revision, entry, start, piece)
            yield piece

    def _target(self, fs: Any, path: str) -> str | None:
        target = fs.ftp.normalize(path)
        return str(target) if target else None


class _FileSystem(SFTPFileSystem):  # type: ignore[misc]
    """fsspec's, which neither reads known_hosts nor has deadlines."""

    def __init__(self, host: str, *, stall_s: float, **options: Any) -> None:
        self._stall_s = stall_s
        super().__init__(host, **options)

    def _connect(self) -> None:
        self.client = paramiko.SSHClient()
        self.client.load_system_host_keys()
        self.client.set_missing_host_key_policy(self.host_key_policy)
        for deadline in ("timeout", "banner_timeout", "auth_timeout"):
            self.ssh_kwargs.setdefault(deadline, _CONNECT_TIMEOUT_S)
        try:
            self._log_in()
            self.client.get_transport().channel_timeout = _CONNECT_TIMEOUT_S
            # paramiko waits without a deadline for the subsystem and its version; a closed connection ends that.
            watch = threading.Timer(_CONNECT_TIMEOUT_S, self.client.close)
            watch.daemon = True
            watch.start()
            try:
                self.ftp = self.client.open_sftp()
            finally:
                watch.cancel()
            self.ftp.get_channel().settimeout(self._stall_s)
        except BaseException:
            self.client.close()
            raise

    def _log_in(self) -> None:
        try:
            self.client.connect(self.host, **self.ssh_kwargs)
        except paramiko.AuthenticationException as error:
            # The same class for a refusal and for no answer; only its words tell them apart.
            if "timeout" in str(error) or "shut down" in str(error):
                raise TimeoutError(errno.ETIMEDOUT, "no answer to the login") from None
            raise

    @staticmethod
    def _decode_stat(found: Any, parent_path: str | None = None) -> Mapping[str, Any]:
        # fsspec calls pipes and devices files, too.
        info: dict[str, Any] = SFTPFileSystem._decode_stat(found, parent_path)
        mode = found.st_mode or 0
        if not (stat.S_ISDIR(mode) or stat.S_ISLNK(mode) or stat.S_ISREG(mode)):
            info["type"] = "other"
        return info


class _Quiet:
    """What paramiko runs in a thread of its own: when the connection ends, who reads says so, and better."""

    def __init__(self, run: Callable[..., None]) -> None:
        self._run = run

    def __call__(self, *args: Any) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._run(*args)


class _TakeOnce(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Takes the first key of a host that known_hosts doesn't know, says so, and no other after it."""

    def __init__(self) -> None:
        self._taken: dict[str, Any] = {}
        self._lock = threading.Lock()

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        with self._lock:
            known = self._taken.get(hostname)
            self._taken.setdefault(hostname, key)
        if known is not None:
            if known != key:
                raise paramiko.BadHostKeyException(hostname, key, known)
            return
        _LOG.warning(
            "%s is not in known_hosts; taking its key %s on trust. Connect once with ssh to record it",
            hostname,
            key.fingerprint,
        )


def _private_key(text: str) -> Any:
    from bdnfs.core.errors import CredentialsError

    kinds = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)
    for kind in kinds:
        try:
            return kind.from_private_key(io.StringIO(text if text.endswith("\n") else f"{text}\n"))
        except (paramiko.SSHException, ValueError, IndexError):
            continue
    raise CredentialsError(
        "the secret for sftp:// is a private key that can't be used (Ed25519, ECDSA and RSA can, "
        "without a passphrase); "
        "give another, or load it into the SSH agent"
    )
