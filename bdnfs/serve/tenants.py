"""Whose an API key is, and whom a service that asks for none answers."""

import hmac
import ipaddress
from collections.abc import Callable, Mapping

from blake3 import blake3

from bdnfs.core.errors import CredentialsError
from bdnfs.spec.secret import Secrets


class Tenants:
    """keys: the name of the secret that is a tenant's API key, by tenant; empty: `everyone` is served."""

    def __init__(
        self, keys: Mapping[str, str], secrets: Secrets, everyone: str, warn: Callable[[str], None]
    ) -> None:
        self._keys, self._secrets, self._everyone, self._warn = keys, secrets, everyone, warn

    @property
    def are_told_apart(self) -> bool:
        """Say whether an API key is asked for."""
        return bool(self._keys)

    def of(self, api_key: str) -> str | None:
        """Return the tenant whose key it is, None if it is nobody's. Blocking: keys are read anew, they rotate."""
        if not self._keys:
            return self._everyone
        given = blake3(api_key.encode()).digest()
        found = []
        for tenant, name in self._keys.items():
            try:
                known = self._secrets.read(name).value
            except CredentialsError as error:
                self._warn(f"the tenant {tenant} can't sign in: {error}")
                continue
            # Hashes: equally long whatever the keys are; and all are compared, whichever it is.
            if hmac.compare_digest(given, blake3(known.encode()).digest()):
                found.append(tenant)
        if len(found) > 1:
            self._warn(
                f"the tenants {', '.join(found)} have the same API key, so it opens none; give each its own"
            )
        return found[0] if len(found) == 1 else None


def is_loopback(host: str) -> bool:
    """Say whether host, a name or an address, is this machine's alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def host_of(netloc: str) -> str:
    """Return the host in a Host header's `host[:port]`."""
    return netloc.partition("]")[0].lstrip("[") if netloc.startswith("[") else netloc.partition(":")[0]
