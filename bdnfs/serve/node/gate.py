"""Who may ask a node: whoever has the cluster's token; with none, whom the listener lets in (mutual TLS, loopback)."""

import hmac

from blake3 import blake3

from bdnfs.spec.secret import Secret


class Gate:
    """token: what is asked for, None: nothing."""

    def __init__(self, token: Secret | None) -> None:
        # Hashes: equally long whatever was sent, and compared in constant time.
        self._hash = None if token is None else blake3(token.value.encode()).digest()

    def lets_in(self, authorization: bytes) -> bool:
        """Say whether an Authorization header opens this node."""
        if self._hash is None:
            return True
        scheme, _, given = authorization.partition(b" ")
        same = hmac.compare_digest(blake3(given.strip()).digest(), self._hash)
        return same and scheme.lower() == b"bearer"
