"""What a node of the cluster shows to its peers, and where programs of one machine reach their node."""

import ssl
from dataclasses import dataclass

from bdnfs.core.errors import CredentialsError, SpecError
from bdnfs.spec.cluster import ClusterConfig
from bdnfs.spec.secret import Secret, header_safe, read_secret_file


@dataclass(frozen=True)
class Access:
    """What this node shows to its peers, and whom it takes for one.

    token: what all members share, or None
    tls:   for mutual TLS, or None
    """

    token: Secret | None = None
    tls: ssl.SSLContext | None = None


def open_access(config: ClusterConfig) -> Access:
    """Read the token, or certificate, key and CA, that config names; raise CredentialsError or SpecError."""
    token = None
    if config.token_file is not None:
        what = "the cluster's token"
        found = read_secret_file(config.token_file, what)
        token = header_safe(found, f"{what} in {config.token_file}") if found else None
        if token is None:
            raise CredentialsError(
                f"{what} is not in {config.token_file}; write the token of cluster.token_file there, "
                "the same on every node"
            )
    if config.tls is None:
        return Access(token)
    try:
        context = ssl.create_default_context(cafile=config.tls.ca)
        context.load_cert_chain(config.tls.cert, config.tls.key)
    except (OSError, ValueError) as error:
        raise SpecError(
            f"reading cluster.tls ({config.tls.cert}, {config.tls.key}, {config.tls.ca}): {error}; name readable PEM "
            "files: this node's certificate and key, and the CA of all members"
        ) from None
    return Access(token, context)


def local_address(config: ClusterConfig) -> str:
    """Return HOST:PORT at which programs of this machine reach its own node."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    return f"[{host}]:{config.port}" if ":" in host else f"{host}:{config.port}"
