"""Azure Blob Storage, by obstore."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from obstore.store import AzureStore

from bdnfs.core.errors import SpecError
from bdnfs.origins.azure_access import AzureAccess, AzureKey, own_endpoint
from bdnfs.origins.http import HttpConfig
from bdnfs.origins.object_client import FOREIGN, NO_RETRIES, Provider, client_options
from bdnfs.origins.object_errors import Server
from bdnfs.origins.objects import ObjectOrigin

_SETTING = "AZURE_STORAGE_ENDPOINT"


@dataclass(frozen=True)
class AzureContainer:
    """A container of a storage account."""

    container: str
    access: AzureAccess
    http: HttpConfig

    @property
    def shown(self) -> str:
        """`azure://account/container`."""
        return f"azure://{self.access.account}/{self.container}"

    @property
    def at(self) -> str:
        """The endpoint, if it is not Azure's own."""
        own = self.access.endpoint == own_endpoint(self.access.account)
        return "Azure" if own else self.access.endpoint

    @property
    def server(self) -> Server:
        access = self.access
        return Server(
            place=access.endpoint,
            setting=_SETTING,
            credentials="account_key, AZURE_STORAGE_ACCOUNT_KEY and the like",
            given=bool(access.key or access.role),
        )

    def open(self, timeout: timedelta, *, signs_content: bool = True) -> AzureStore:
        """Return a store whose requests end after timeout; SpecError if the settings can't be used."""
        access = self.access
        # All that obstore would otherwise take from the environment by itself.
        config: dict[str, Any] = {
            "account_name": access.account,
            "endpoint": access.endpoint,
            "use_emulator": False,
            "use_fabric_endpoint": False,
            "use_azure_cli": False,
            "skip_signature": not (access.key or access.role),
            **access.role,
        }
        try:
            return AzureStore(
                self.container,
                config=config,  # type: ignore[arg-type]
                client_options=client_options(access.endpoint, self.http, timeout),
                retry_config=NO_RETRIES,
                credential_provider=Provider(access.key, _form) if access.key else None,
            )
        except FOREIGN as error:
            raise SpecError(
                f"opening {self.shown}: the settings can't be used ({type(error).__name__}); "
                f"check {_SETTING}, the other AZURE_ variables, proxies and CA bundle"
            ) from None

    def when_refused(self) -> None:
        """There are no other terms."""


class AzureOrigin(ObjectOrigin):
    """A container below prefix, or the one blob that prefix names."""

    def __init__(self, container: str, prefix: str, access: AzureAccess, http: HttpConfig) -> None:
        super().__init__(AzureContainer(container, access, http), prefix, http)


def _form(key: AzureKey) -> dict[str, Any]:
    return {key.kind: key.value}
