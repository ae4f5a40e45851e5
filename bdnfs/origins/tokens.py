"""What goes into an Authorization header: the Hub's token, and what an https server wants."""

import base64
from urllib.parse import unquote, urlsplit

from bdnfs.origins.credentials import Credential, Fixed, Named, Reread
from bdnfs.spec.secret import plain_token
from bdnfs.spec.upstream import UpstreamConfig, read_hub_token


def hub_credential(upstream: UpstreamConfig, secret: Named | None) -> Credential[str] | None:
    """Return the header's value for the Hub: a secret's token, else this user's, else None."""
    if secret is not None:
        return Reread(secret.name, lambda: f"Bearer {plain_token(secret.name, secret.read())}")
    token, login = upstream.hf_token, upstream.hf_login
    if token is None:
        return None
    if login is None:
        return Fixed(f"Bearer {token.value}", "HF_TOKEN")
    # `hf auth login` may be run again while a mount stands.
    return Reread("the Hub's login", lambda: f"Bearer {(read_hub_token(login) or token).value}")


def https_credential(url: str, secret: Named | None) -> Credential[str] | None:
    """Return the header's value for url: of `user:password` Basic, of anything else Bearer; or None.

    Without a secret it is the user in the URL; a spec's URL never has a password.
    """
    if secret is not None:
        return Reread(
            secret.name,
            lambda: _basic(secret.read().value) or f"Bearer {plain_token(secret.name, secret.read())}",
        )
    user, at, _ = urlsplit(url).netloc.rpartition("@")
    if not at or not user:
        return None
    return Fixed(_basic(unquote(user)) or f"Bearer {unquote(user)}", "the URL's user")


def _basic(text: str) -> str | None:
    if ":" not in text or text.startswith("{"):
        return None
    return f"Basic {base64.b64encode(text.encode()).decode()}"
