"""Whom TLS trusts."""

import ssl

from bdnfs.core.errors import SpecError


def ssl_context(ca_bundle: str | None) -> ssl.SSLContext:
    """Return a verifying context; SpecError where the bundle can't be read."""
    try:
        return ssl.create_default_context(cafile=ca_bundle)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SpecError(
            f"the CA bundle {ca_bundle} can't be used ({reason}); name a readable PEM file (SSL_CERT_FILE)"
        ) from None
