"""S3 and what speaks its API, by obstore."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from obstore.store import S3Store

from bdnfs.core.errors import SpecError
from bdnfs.origins.aws import AwsAccess
from bdnfs.origins.credentials import AwsKeys
from bdnfs.origins.http import HttpConfig
from bdnfs.origins.object_client import FOREIGN, NO_RETRIES, Provider, client_options
from bdnfs.origins.object_errors import Server
from bdnfs.origins.objects import ObjectOrigin

# Long over: obstore keeps no credentials beyond their end.
_ASK_AGAIN = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class S3Bucket:
    """A bucket of S3, or of a store that speaks its API.

    shown:   as the source says it; by default `s3://bucket`
    setting: the variable that names the endpoint
    hosted:  whether the bucket's name is part of the host: `https://bucket.host/key`
    machine: whether the machine's own role is used where no credentials were given
    """

    bucket: str
    access: AwsAccess
    http: HttpConfig
    shown: str = ""
    setting: str = "AWS_ENDPOINT_URL"
    hosted: bool = False
    machine: bool = False

    def __post_init__(self) -> None:
        if not self.shown:
            object.__setattr__(self, "shown", f"s3://{self.bucket}")

    @property
    def at(self) -> str:
        """The endpoint; AWS is one store, whatever the region."""
        return self.access.endpoint or "AWS"

    @property
    def server(self) -> Server:
        access = self.access
        return Server(
            place=access.endpoint or f"AWS ({access.region})",
            setting=self.setting,
            credentials="AWS_ACCESS_KEY_ID and the like",
            given=bool(access.keys or access.role or self.machine),
            region=access.region,
        )

    def open(self, timeout: timedelta, *, signs_content: bool = True) -> S3Store:
        """Return a store whose requests end after timeout; SpecError if the settings can't be used."""
        access = self.access
        url = access.endpoint or f"https://s3.{access.region}.amazonaws.com"
        config: dict[str, Any] = {"region": access.region, "skip_signature": False, **access.role}
        # As the SDKs do it: what goes over TLS nobody changes on the way.
        config["unsigned_payload"] = not signs_content and url.startswith("https://")
        if self.hosted:
            # obstore takes an endpoint as it is and expects the bucket in it.
            url = url.replace("://", f"://{self.bucket}.", 1)
            config["virtual_hosted_style_request"] = True
        if access.endpoint:
            config["endpoint"] = url
        if access.requester_pays:
            config["request_payer"] = True
        provider = None
        if access.keys is not None:
            provider = Provider(access.keys, _form)
        elif not access.role and not self.machine:
            config["skip_signature"] = True
        try:
            return S3Store(
                self.bucket,
                config=config,  # type: ignore[arg-type]
                client_options=client_options(url, self.http, timeout),
                retry_config=NO_RETRIES,
                credential_provider=provider,
            )
        except FOREIGN as error:
            raise SpecError(
                f"opening {self.shown}: the settings can't be used ({type(error).__name__}); "
                f"check {self.setting}, AWS_REGION, proxies and CA bundle"
            ) from None

    def when_refused(self) -> Self | None:
        """Return the bucket reached by the machine's own role, where nothing else was given."""
        return replace(self, machine=True) if self.access.instance and not self.machine else None


class S3Origin(ObjectOrigin):
    """A bucket of S3 below prefix, or the one object that prefix names."""

    def __init__(self, bucket: str, prefix: str, access: AwsAccess, http: HttpConfig) -> None:
        super().__init__(S3Bucket(bucket, access, http), prefix, http)


def _form(keys: AwsKeys) -> dict[str, Any]:
    return {"access_key_id": keys.key_id, "secret_access_key": keys.secret_key, "token": keys.session_token}
