"""The read API: a token for an API key, a version and credentials for a ref."""

from datetime import UTC, datetime
from time import time
from typing import Any

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response

from bdnfs.core.errors import UNREADABLE, BdnfsError, NotFoundError, SpecError
from bdnfs.mirror.store import Store
from bdnfs.mirror.versions import Resolved, Versions
from bdnfs.serve.bucket import BUCKET
from bdnfs.serve.grants import SEALED_CHARS_MAX, Grant, Grants, Purpose
from bdnfs.serve.objects import Objects
from bdnfs.serve.refusal import refusal_of
from bdnfs.serve.signature import REGION
from bdnfs.serve.tenants import Tenants
from bdnfs.spec.volume import DIGEST_DIGITS, VolumeRef, check_name, parse_ref
from bdnfs.volume.records import relative_key

# As the official service has it.
TOKEN_S = 3600
_SCOPE = "PULL"
_BODY_BYTES_MAX = 1 << 16
_BODY_S = 10.0
_REF_CHARS_MAX = 4096
# What a reason is to the API's older clients, and to those that read `code`.
_REASONS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    408: "DEADLINE_EXCEEDED",
    409: "AMBIGUOUS_PREFIX",
    413: "INVALID_ARGUMENT",
    500: "INTERNAL",
    502: "INTERNAL",
    503: "UNAVAILABLE",
}


class _TokenRequest(msgspec.Struct):
    scopes: list[str]
    namespaces: list[str]
    volumes: list[str]


class Api:
    """The two calls. advertised: where clients reach the service; None: where this one reached it."""

    def __init__(
        self,
        store: Store,
        objects: Objects,
        grants: Grants,
        tenants: Tenants,
        advertised: str | None,
        credentials_s: float,
    ) -> None:
        self._store, self._objects = store, objects
        self._grants, self._tenants = grants, tenants
        self._advertised, self._credentials_s = advertised, credentials_s

    async def token(self, request: Request) -> Response:
        """Exchange an API key for a token that names volumes."""
        tenant = await trio.to_thread.run_sync(self._tenants.of, _bearer(request))
        if tenant is None:
            return failed(request, 401, "the API key is not accepted")
        request.scope["state"]["tenant"] = tenant
        body = await _body(request)
        if body is None:
            return failed(request, 413, f"the request is larger than {_BODY_BYTES_MAX} bytes, or never came")
        try:
            asked = msgspec.json.decode(body, type=_TokenRequest)
            namespaces = tuple(check_name(name.lower(), "namespace", name) for name in asked.namespaces)
            volumes = tuple(check_name(name.lower(), "volume", name) for name in asked.volumes)
        except (*UNREADABLE, SpecError) as error:
            return failed(request, 400, f"the request can't be read: {error}")
        if not (asked.scopes and namespaces and volumes):
            return failed(request, 400, "scopes, namespaces and volumes each need one at least")
        if set(asked.scopes) != {_SCOPE}:
            return failed(request, 403, f"this service is read only: it grants the scope {_SCOPE} alone")
        grant = Grant(tenant, namespaces, volumes, int(time() + TOKEN_S))
        sealed = self._grants.seal(Purpose.TOKEN, grant)
        if len(sealed) > SEALED_CHARS_MAX:
            return failed(request, 400, "that is more names than one token holds; ask for several")
        return _json(
            {
                "token": sealed,
                "expires_at": _instant(grant.expires_s),
                "scopes": [_SCOPE],
                "namespaces": namespaces,
                "volumes": volumes,
                "bdn_endpoint": self._endpoint(request),
            }
        )

    async def resolve(self, request: Request) -> Response:
        """Find the version that a ref names; give credentials for its namespace's objects."""
        grant = self._grants.open(Purpose.TOKEN, _bearer(request))
        if grant is None or grant.is_over:
            return failed(request, 401, "the token is none of this service, or has expired")
        request.scope["state"]["tenant"] = grant.tenant
        text = request.query_params.get("ref", "")
        request.scope["state"]["ref"] = text
        try:
            ref = parse_ref(text) if len(text) <= _REF_CHARS_MAX else None
        except SpecError as error:
            return failed(request, 400, str(error))
        if ref is None:
            return failed(request, 400, f"a ref has {_REF_CHARS_MAX} characters at most")
        if ref.namespace not in grant.namespaces or ref.volume not in grant.volumes:
            return failed(request, 403, "the token does not name this volume")
        versions = Versions(self._store, grant.tenant)
        try:
            found = await self._objects.run(versions.resolve, ref)
        except NotFoundError as error:
            request.scope["state"]["error"] = str(error)
            many = await self._objects.run(_are_many, versions, ref)
            if many:
                return failed(request, 409, f"{ref}: more than one version begins so; give more digits")
            return failed(request, 404, f"{ref}: there is no such volume, tag or version")
        return _json(
            {"resolved": _resolved(ref, found, grant.tenant), "origin": self._origin(request, ref, grant)}
        )

    def _origin(self, request: Request, ref: VolumeRef, grant: Grant) -> dict[str, str]:
        expires_s = int(time() + self._credentials_s)
        session = Grant(grant.tenant, (ref.namespace,), (), expires_s)
        credentials = self._grants.credentials(self._grants.seal(Purpose.SESSION, session))
        return {
            "endpoint": self._endpoint(request),
            "region": REGION,
            "bucket": BUCKET,
            "access_key_id": credentials.access_key,
            "secret_access_key": credentials.secret_key,
            "session_token": credentials.session_token,
            "expires_at": _instant(expires_s),
        }

    def _endpoint(self, request: Request) -> str:
        return self._advertised or f"{request.url.scheme}://{request.headers.get('host', '')}"


def failed(request: Request, status: int, message: str, retry_after_s: int | None = None) -> Response:
    """Return an error as the API's clients read it."""
    reason = _REASONS[status]
    request.scope["state"]["refused"] = reason
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return _json({"error": {"message": message, "code": reason, "reason": reason}}, status, headers)


def failed_by(request: Request, error: BdnfsError) -> Response:
    """Return what a client is told of an error of ours."""
    refusal = refusal_of(error, request.url.path)
    return failed(request, refusal.status, refusal.message, refusal.retry_after_s)


def _resolved(ref: VolumeRef, found: Resolved, tenant: str) -> dict[str, Any]:
    return {
        "reference": str(ref._replace(path="")),
        "org_id": tenant,
        "origin_digest": found.row.digest,
        "kind": "manifest",
        "target": {"relative_key": relative_key(found.row.digest)},
        "sequence": found.row.sequence,
        "resolved_from": found.by,
    }


def _are_many(versions: Versions, ref: VolumeRef) -> bool:
    if ref.digest is None or len(ref.digest) == DIGEST_DIGITS:
        return False
    rows = versions.all(ref.namespace, ref.volume)
    return sum(row.digest.removeprefix("b3:").startswith(ref.digest) for row in rows) > 1


def _bearer(request: Request) -> str:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""


async def _body(request: Request) -> bytes | None:
    """Return a small body, None for one that is larger or doesn't come."""
    body = bytearray()
    with trio.move_on_after(_BODY_S):
        async for piece in request.stream():
            body += piece
            if len(body) > _BODY_BYTES_MAX:
                return None
        return bytes(body)
    return None


def _instant(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _json(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # Tokens and keys are in it.
    return Response(
        msgspec.json.encode(content),
        status,
        {"cache-control": "no-store", **(headers or {})},
        "application/json",
    )
