"""What a publisher reads from its environment, and how settings are read anywhere (SPEC 11).

Variables have the prefix `KEYTURN_`; files of the same name in a secrets folder
(`KEYTURN_SECRETS_DIR`, by default `/run/secrets` where that exists) serve as well.
Settings are read once, at the process's door. A missing or malformed one is told in one
line that names it and never shows its value.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from keyturn.crypto import IntakePublicKey, SigningKey, VerifyKey, from_base64
from keyturn.errors import SettingsError
from keyturn.identifiers import SHORT_NAME_PATTERN, is_short_name

PREFIX: Final = "KEYTURN_"
SECRETS_DIR_VARIABLE: Final = "KEYTURN_SECRETS_DIR"
SEED_BYTES: Final = 32
_DEFAULT_SECRETS_DIR: Final = Path("/run/secrets")


class Settings(BaseSettings):
    """The base of every process's settings."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
        env_ignore_empty=True,
    )

    @classmethod
    def read(cls) -> Self:
        """Read the environment and the secrets folder.

        Raises:
            SettingsError: names each setting that is missing or malformed, in one line.
        """
        try:
            return cls(_secrets_dir=secrets_dir())
        except ValidationError as exc:
            raise SettingsError(_one_line(exc)) from None  # the cause repeats values


def secrets_dir() -> Path | None:
    """The folder of secret files: the one that is named, or `/run/secrets` where it exists.

    Raises:
        SettingsError: the folder that is named does not exist.
    """
    named = os.environ.get(SECRETS_DIR_VARIABLE)
    if named is None:
        return _DEFAULT_SECRETS_DIR if _DEFAULT_SECRETS_DIR.is_dir() else None
    if not Path(named).is_dir():
        raise SettingsError(f"{SECRETS_DIR_VARIABLE} names no folder")
    return Path(named)


def _one_line(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    told = []
    for problem in problems:
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:  # a rule about several settings names them itself
            told.append(PREFIX + message)
            continue
        name = PREFIX + str(problem["loc"][0]).upper()
        missing = problem["type"] == "missing"
        told.append(f"{name} is missing" if missing else f"{name} is malformed: {message}")
    return "; ".join(dict.fromkeys(told))


def seed_from_b64(value: object) -> bytes:
    """32 bytes from their base64.

    Raises:
        ValueError: anything else, without repeating it.
    """
    if not isinstance(value, str):
        raise ValueError("not the base64 of 32 bytes")  # noqa: TRY004  # pydantic wants ValueError
    try:
        decoded = from_base64(value.strip())
    except ValueError:
        raise ValueError("not the base64 of 32 bytes") from None
    if len(decoded) != SEED_BYTES:
        raise ValueError("not the base64 of 32 bytes")
    return decoded


@dataclass(frozen=True, slots=True)
class NamedIntakeKey:
    """The workers' public intake key, and the id that requests name it by."""

    id: str
    key: IntakePublicKey


def _signing_key(value: object) -> object:
    return value if isinstance(value, SigningKey) else SigningKey.from_seed(seed_from_b64(value))


def _signing_keys(value: object) -> object:
    if isinstance(value, tuple):
        return value
    return tuple(SigningKey.from_seed(seed_from_b64(seed)) for seed in str(value).split(","))


def _verify_keys(value: object) -> object:
    if isinstance(value, VerifyKey):
        return (value,)
    if not isinstance(value, str):
        return value
    # Base64 has no comma. Named twice, a key is one.
    keys = (VerifyKey.from_bytes(seed_from_b64(part)) for part in value.split(","))
    return tuple({key.id: key for key in keys}.values())


def _intake_public_key(value: object) -> object:
    if isinstance(value, NamedIntakeKey):
        return value
    name, _, encoded = str(value).strip().partition(":")
    if not is_short_name(name):
        raise ValueError("reads id:base64")
    try:
        return NamedIntakeKey(name, IntakePublicKey.from_bytes(from_base64(encoded)))
    except ValueError:
        raise ValueError("reads id:base64, of a public key of 1216 bytes") from None


SigningKeySetting = Annotated[SigningKey, NoDecode, BeforeValidator(_signing_key)]
SigningKeysSetting = Annotated[tuple[SigningKey, ...], NoDecode, BeforeValidator(_signing_keys)]
VerifyKeysSetting = Annotated[
    tuple[VerifyKey, ...], NoDecode, BeforeValidator(_verify_keys), Field(min_length=1)
]
IntakePublicKeySetting = Annotated[NamedIntakeKey, NoDecode, BeforeValidator(_intake_public_key)]
Url = Annotated[str, Field(pattern=r"^https?://")]
AmqpUrl = Annotated[SecretStr, Field(min_length=1)]  # it holds a password


class DeploymentSettings(Settings):
    """What every process shares: the installation's name, and the broker's address."""

    deployment: Annotated[str, Field(pattern=SHORT_NAME_PATTERN)] = "default"
    amqp_url: AmqpUrl

    @model_validator(mode="after")
    def _check_amqp_url(self) -> Self:
        if not self.amqp_url.get_secret_value().startswith(("amqp://", "amqps://")):
            raise ValueError("AMQP_URL must begin with amqp:// or amqps://")
        return self


class S3Settings(Settings):
    """Where the bucket is. Without keys, the standard AWS chain finds them."""

    s3_endpoint_url: Url | None = None
    s3_region: str = "us-east-1"
    s3_bucket: Annotated[str, Field(min_length=3)]
    s3_access_key_id: str | None = None
    s3_secret_access_key: SecretStr | None = None

    @model_validator(mode="after")
    def _check_pair(self) -> Self:
        if (self.s3_access_key_id is None) != (self.s3_secret_access_key is None):
            raise ValueError("S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY are set together or not")
        return self


class PublisherSettings(DeploymentSettings):
    """What a publishing service needs (SPEC 11). For staging also `S3Settings`."""

    publisher_name: Annotated[str, Field(pattern=SHORT_NAME_PATTERN)]
    publisher_key: SigningKeySetting
    intake_public_key: IntakePublicKeySetting
    event_public_key: VerifyKeysSetting  # one or several, with commas between them (SPEC 6.10)
    pepper: SecretStr = SecretStr("")
    v0_pepper: SecretStr = SecretStr("")  # for enrolments that bring a v0 API key (SPEC 4.6)
