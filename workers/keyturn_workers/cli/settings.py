"""Settings of single commands, in addition to those of the workers (SPEC 11)."""

from typing import Annotated, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import NoDecode

from keyturn.gateway.transport import is_gateway_url
from keyturn.identifiers import SHORT_NAME_PATTERN
from keyturn.project_keks import ProjectKeks, parse_project_keks
from keyturn.settings import (
    BrokerTlsSettings,
    DeploymentSettings,
    Settings,
    SigningKeySetting,
    VerifyKeysSetting,
    check_amqp_url,
)
from keyturn_workers.process.settings import (
    CustomerKeySettings,
    IntakeKeys,
    KmsSettings,
    MasterKeys,
    OperatorSettings,
    Publishers,
    SourceSettings,
)

GATEWAY_URL_FORM: Final = "must be http://host or https://host, optionally with a path"


def _gateway_url(value: str) -> str:
    if not is_gateway_url(value):
        raise ValueError(GATEWAY_URL_FORM)
    return value


def _project_keks(value: object) -> object:
    return parse_project_keks(value) if isinstance(value, str) else value


GatewayUrl = Annotated[str, AfterValidator(_gateway_url)]


class ApiKeySettings(Settings):
    """A project's API key, if it comes from neither a file nor a prompt.

    The new key of a rotation has its own name: `api_key` may be set for downloads, and must
    not become the new key by mistake.
    """

    api_key: SecretStr | None = None
    new_api_key: SecretStr | None = None


class ProjectKekSettings(Settings):
    """A project's admin KEKs, if no file is named: the text of such a file (SPEC 15.2)."""

    project_kek: Annotated[ProjectKeks | None, NoDecode, BeforeValidator(_project_keks)] = None


class EvidenceSettings(Settings):
    """The keys and names that verify evidence, unless options give them (SPEC 15.2)."""

    deployment: Annotated[str, Field(pattern=SHORT_NAME_PATTERN)] | None = None
    event_public_key: Annotated[VerifyKeysSetting, Field(validate_default=False)] = ()


class ReaderSettings(Settings):
    """The secret that derives a KEK, in addition to the API key."""

    pepper: SecretStr = SecretStr("")


class GatewayUrlSettings(Settings):
    """The gateway, unless an option names it."""

    gateway_url: GatewayUrl | None = None


class BrokerSettings(BrokerTlsSettings):
    """The broker, for a command that works without one, too."""

    amqp_url: SecretStr | None = None

    @model_validator(mode="after")
    def _check_amqp_url(self) -> Self:
        if self.amqp_url is not None:
            check_amqp_url(self.amqp_url.get_secret_value(), self)
        return self


class StorageKeySettings(Settings):
    """The region and access keys of an existing storage."""

    s3_region: str = "us-east-1"
    s3_access_key_id: str | None = None
    s3_secret_access_key: SecretStr | None = None


class ResignSettings(DeploymentSettings):
    """The publisher that signs a dead letter again, and the publishers that may have signed it."""

    publisher_name: Annotated[str, Field(pattern=SHORT_NAME_PATTERN)]
    publisher_key: SigningKeySetting
    publishers: Publishers
    # The same as the workers': only older requests were rejected for their age.
    request_max_age_s: Annotated[int, Field(ge=1)] = 7 * 24 * 3600


class PublishersSettings(Settings):
    """The publishers alone."""

    publishers: Publishers


class IntakeKeySettings(Settings):
    """The intake keys, to open secrets that another publisher sealed."""

    intake_keys: IntakeKeys


class MasterKeySettings(KmsSettings):
    """The master keys alone, and the active one, if known."""

    master_keys: MasterKeys
    active_master_key: str | None = None


class AuditVerifySettings(Settings):
    """The keys that verify an exported audit trail."""

    deployment: Annotated[str, Field(pattern=SHORT_NAME_PATTERN)] = "default"
    event_public_key: VerifyKeysSetting


class AuditReaderSettings(DeploymentSettings):
    """The broker and the keys that verify the audit trail."""

    event_public_key: VerifyKeysSetting


class SourceStatusSettings(OperatorSettings, SourceSettings):
    """The sources, and the keys that open the records about them."""


class StatusSettings(OperatorSettings, CustomerKeySettings):
    """The operator's keys, the stores of customer keys, and the active master key, if known."""

    deployment: Annotated[str, Field(pattern=SHORT_NAME_PATTERN)] = "default"
    active_master_key: str | None = None
