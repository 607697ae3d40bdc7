"""What single commands read from the environment, beside the settings of workers (SPEC 11)."""

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from keyturn.gateway.transport import is_gateway_url
from keyturn.identifiers import SHORT_NAME_PATTERN
from keyturn.settings import DeploymentSettings, Settings, SigningKeySetting
from keyturn_workers.settings import OperatorSettings, Publishers


def _gateway_url(value: str) -> str:
    if not is_gateway_url(value):
        raise ValueError("reads http://host or https://host, and no more than a path")
    return value


GatewayUrl = Annotated[str, AfterValidator(_gateway_url)]


class ApiKeySettings(Settings):
    """A project's API key where no file names it and nobody types it.

    The one that a rotation turns to has a name of its own: `api_key` may be set for
    downloads, and must not become a key anew.
    """

    api_key: SecretStr | None = None
    new_api_key: SecretStr | None = None


class ReaderSettings(Settings):
    """What a KEK is derived with, beside the key itself."""

    pepper: SecretStr = SecretStr("")
    v0_master_key: SecretStr | None = None


class GatewayUrlSettings(Settings):
    """Where the gateway is, for a command that can do without."""

    gateway_url: GatewayUrl | None = None


class BrokerSettings(Settings):
    """The broker's address, for a command that can do without."""

    amqp_url: SecretStr | None = None


class StorageKeySettings(Settings):
    """What a storage that stands already is asked with."""

    s3_region: str = "us-east-1"
    s3_access_key_id: str | None = None
    s3_secret_access_key: SecretStr | None = None


class ResignSettings(DeploymentSettings):
    """Who signs a dead letter anew, and by whom it may have been signed before."""

    publisher_name: Annotated[str, Field(pattern=SHORT_NAME_PATTERN)]
    publisher_key: SigningKeySetting
    publishers: Publishers
    # As the workers have it: only what is older was refused for its age.
    request_max_age_s: Annotated[int, Field(ge=1)] = 7 * 24 * 3600


class StatusSettings(OperatorSettings):
    """What opens everything, and the master key that new projects come under, where told."""

    active_master_key: str | None = None
