"""The read API before the config's mirror: opens mirror, sockets and keys; serves until it is told to end."""

import os
import secrets
import signal
import ssl
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from urllib.parse import urlsplit

import trio
from blake3 import blake3

from bdnfs.core.errors import BdnfsError, CredentialsError, SpecError
from bdnfs.serve.api import Api
from bdnfs.serve.bucket import Bucket
from bdnfs.serve.grants import KEY_BYTES, Grants
from bdnfs.serve.objects import Objects
from bdnfs.serve.server import Server
from bdnfs.serve.service import Service
from bdnfs.serve.tenants import Tenants, is_loopback
from bdnfs.session.bugs import bug_lines
from bdnfs.session.connections import connections_max
from bdnfs.session.mirror import TENANT, Mirror, open_mirror
from bdnfs.spec.config import Config
from bdnfs.spec.secret import Secrets, read_secret_file, take_secrets
from bdnfs.spec.serve import ServeConfig

_ASKED_S = 10.0
_KEY_CHARS_MIN = 32

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Say = Callable[[str], None]


def serve_mirror(config: Config, environment: Mapping[str, str], say: Say, told: Say, warn: Say) -> None:
    """Serve the config's mirror; return when SIGINT, SIGTERM or SIGHUP ended it. On the main thread.

    say: takes a line when it listens; told: one for each request; warn: what is wrong meanwhile

    Raises SpecError for a config that can't be served, CredentialsError for keys that are not there.
    """
    serve = config.serve
    if not serve.keys and not is_loopback(serve.host):
        raise SpecError(
            f"serve: {serve.host} can be reached from other machines, and there are no keys: anybody could read the "
            "mirror; give each tenant one (serve: {keys: {<tenant>: <secret name>}}), or listen on 127.0.0.1"
        )
    names = [*serve.keys.values(), config.mirror.secret_name if config.mirror else None]
    known = take_secrets(config.secrets, filter(None, names), environment)
    mirror = open_mirror(config, known)
    if mirror is None:
        raise SpecError(
            "the config names no mirror; write mirror: s3://bucket/prefix, or a directory, into it"
        )
    tenants = Tenants(serve.keys, known, config.tenant or TENANT, warn)
    _distinct(serve, known)
    tls, grants = _tls(serve), Grants(_master(serve.key_file))
    try:
        trio.run(_serve, serve, mirror, grants, tenants, tls, say, told, warn)
    finally:
        mirror.close()


async def _serve(
    serve: ServeConfig,
    mirror: Mirror,
    grants: Grants,
    tenants: Tenants,
    tls: ssl.SSLContext | None,
    say: Say,
    told: Say,
    warn: Say,
) -> None:
    numbers = [each for each in _ENDS if signal.getsignal(each) != signal.SIG_IGN]
    with trio.open_signal_receiver(*numbers) as signals:
        listeners = await _listen(serve)
        store = mirror.versions.store
        objects = Objects(store)
        service = Service(
            Api(store, objects, grants, tenants, serve.advertise, serve.credentials_s),
            Bucket(objects, grants),
            asks_keys=tenants.are_told_apart,
            advertised_host=urlsplit(serve.advertise).hostname if serve.advertise else None,
            say=told,
            bug=bug_lines(),
        )
        server = Server(service, listeners, tls, connections_max(), told)
        scheme = "https" if tls else "http"
        for each in listeners:
            say(f"listening at {scheme}://{_shown(each.socket.getsockname())}, serving {store.name}")
        if not tenants.are_told_apart:
            say("asks for no API key: every program on this machine can read the mirror")
        elif tls is None and not is_loopback(serve.host) and not (serve.advertise or "").startswith("https:"):
            warn(
                "API keys come over plain http; give serve: {tls: {cert, key}}, or put a TLS proxy before it"
            )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_look, objects, mirror, warn)
            await server.run(lambda: _next(signals), lambda: _next(signals))
            nursery.cancel_scope.cancel()


async def _next(signals: AsyncIterator[int]) -> None:
    async for _ in signals:
        return


async def _listen(serve: ServeConfig) -> list[trio.SocketListener]:
    host = None if serve.host == "*" else serve.host
    try:
        return await trio.open_tcp_listeners(serve.port, host=host)
    except OSError as error:
        raise SpecError(
            f"serve: can't listen on {serve.host}:{serve.port}: {error.strerror or error}; give another one, "
            "--listen HOST:PORT"
        ) from None


async def _look(objects: Objects, mirror: Mirror, warn: Say) -> None:
    """Say it where the mirror gives nothing; it may be back by the time that somebody asks."""
    store = mirror.versions.store
    try:
        with trio.fail_after(_ASKED_S):
            await objects.run(lambda: next(iter(store.list("volumes/")), None))
    except BdnfsError as error:
        warn(str(error))
    except trio.TooSlowError:
        warn(f"{store.name} has not answered for {_ASKED_S:g} s")


def _distinct(serve: ServeConfig, known: Secrets) -> None:
    values = {tenant: known.read(name).value for tenant, name in serve.keys.items()}
    for value in values.values():
        same = [other for other in values if values[other] == value]
        if len(same) > 1:
            raise CredentialsError(
                f"serve: the tenants {', '.join(same)} have the same API key; give each its own"
            )


def _tls(serve: ServeConfig) -> ssl.SSLContext | None:
    if serve.cert is None or serve.key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(serve.cert, serve.key, password=_no_password)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, FileNotFoundError | PermissionError) else error
        raise SpecError(
            f"serve: can't use the certificate {serve.cert} with the key {serve.key}: {why}; both have to be "
            "PEM files, the key without a password"
        ) from None
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")


def _master(path: str | None) -> bytes:
    """Return what grants are signed with: what the file holds, made if it is missing, else random."""
    if path is None:
        return secrets.token_bytes(KEY_BYTES)
    try:
        _make(path)
        found = os.stat(path)
    except OSError as error:
        raise CredentialsError(
            f"serve: key_file {path} can't be used: {error.strerror}; name another"
        ) from None
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise CredentialsError(f"serve: key_file {path} can be read by others; run: chmod 600 {path}")
    text = read_secret_file(path, "serve: key_file") or ""
    if len(text) < _KEY_CHARS_MIN:
        raise CredentialsError(
            f"serve: key_file {path} holds {len(text)} characters; remove it, and a new one is made, or write "
            f"{_KEY_CHARS_MIN} random ones or more"
        )
    return blake3(text.encode()).digest()


def _make(path: str) -> None:
    """Write a new key, whole or not at all, unless there is one."""
    if os.path.exists(path):
        return
    draft = f"{path}.{secrets.token_hex(8)}"
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(secrets.token_hex(KEY_BYTES) + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass  # another service was first: that one's is the key
    finally:
        os.unlink(draft)


def _shown(address: tuple[str, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
