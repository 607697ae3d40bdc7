"""What single commands read from the environment, beside the settings of workers (SPEC 11)."""

from typing import Annotated

from pydantic import Field, SecretStr

from contracts.names import SHORT_NAME_PATTERN
from contracts.settings import DeploymentSettings, Settings, SigningKeySetting
from workers.settings import OperatorSettings, Publishers


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


class BrokerSettings(Settings):
    """The broker's address, for a command that can do without."""

    amqp_url: SecretStr | None = None


class ResignSettings(DeploymentSettings):
    """Who signs a dead letter anew, and by whom it may have been signed before."""

    publisher_name: Annotated[str, Field(pattern=SHORT_NAME_PATTERN)]
    publisher_key: SigningKeySetting
    publishers: Publishers


class StatusSettings(OperatorSettings):
    """What opens everything, and the master key that new projects come under, where told."""

    active_master_key: str | None = None
