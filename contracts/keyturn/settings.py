"""Settings of a publisher, and the base of every process's settings (SPEC 11).

    settings = PublisherSettings.read()  # KEYTURN_AMQP_URL, KEYTURN_PUBLISHER_KEY, …

Each setting is an environment variable with the prefix `KEYTURN_`, or a line of a file that
`KEYTURN_ENV_FILE` names, or a file of the same name in the secrets folder (`KEYTURN_SECRETS_DIR`;
by default `/run/secrets`, if it exists). Settings are read once, at the start of a process. A
missing or malformed one raises `SettingsError`, whose one line names it and never shows its value.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import parse_qs, urlsplit

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from keyturn.crypto.base64 import from_base64
from keyturn.crypto.intake import IntakePublicKey
from keyturn.crypto.signatures import SigningKey, VerifyKey
from keyturn.errors import SettingsError
from keyturn.identifiers import SHORT_NAME_PATTERN, is_short_name

PREFIX: Final = "KEYTURN_"
SECRETS_DIR_VARIABLE: Final = "KEYTURN_SECRETS_DIR"
ENV_FILE_VARIABLE: Final = "KEYTURN_ENV_FILE"
SEED_BYTES: Final = 32
_LABEL_MAX: Final = 63  # of a host name
_DEFAULT_SECRETS_DIR: Final = Path("/run/secrets")
# These replace the library's words.
_MUST_BE: Final = {
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "bool_parsing": "true or false",
}
_SHOULD_BE: Final = "Input should be "
_QUOTED_JSON: Final = re.compile(r"'([{\[].*)'", re.DOTALL)
_QUOTED: Final = re.compile(r"""'[^{\[].*'|".*\"""", re.DOTALL)


class Settings(BaseSettings):
    """Base class of settings: frozen, and read by `read`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
        env_ignore_empty=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources, the most important one first."""
        del dotenv_settings  # it would replace ${…} within secrets
        return init_settings, env_settings, _EnvFiles(settings_cls), file_secret_settings

    @classmethod
    def read(cls) -> Self:
        """Read the environment, the environment files and the secrets folder.

        Raises:
            SettingsError: names each setting that is missing or malformed, in one line.
        """
        try:
            return cls(_secrets_dir=secrets_dir())
        except ValidationError as exc:
            # The cause repeats values.
            raise SettingsError(
                _one_line(exc) + _in_quotes(cls.model_fields) + _where_missing(exc)
            ) from None


class _EnvFiles(EnvSettingsSource):
    """The settings in the files that `KEYTURN_ENV_FILE` names."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        named = os.environ.get(ENV_FILE_VARIABLE, "")
        paths = [Path(path) for path in named.split(os.pathsep) if path]
        values = read_env_files(paths)
        self.env_vars = {name.lower(): value for name, value in values.items() if value}


def read_env_files(paths: Iterable[Path]) -> dict[str, str]:
    """The `KEYTURN_` variables of environment files; an earlier file has precedence.

    Raises:
        SettingsError: a file cannot be read.
    """
    found: dict[str, str] = {}
    for path in paths:
        try:
            with path.open(encoding="utf-8") as file:
                values = dotenv_values(stream=file, interpolate=False)
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
            raise SettingsError(f"{path}: {reason}") from None
        for name, value in values.items():
            if name.startswith(PREFIX) and value is not None:
                found.setdefault(name, value)
    return found


def secrets_dir() -> Path | None:
    """The folder of secret files: `KEYTURN_SECRETS_DIR`, or `/run/secrets` if it exists.

    Raises:
        SettingsError: the named folder does not exist.
    """
    named = os.environ.get(SECRETS_DIR_VARIABLE)
    if named is None:
        return _DEFAULT_SECRETS_DIR if _DEFAULT_SECRETS_DIR.is_dir() else None
    if not Path(named).is_dir():
        raise SettingsError(f"{SECRETS_DIR_VARIABLE} is not a folder")
    return Path(named)


def _one_line(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    lines = []
    for problem in problems:
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:  # a rule about several settings names them itself
            lines.append(PREFIX + message)
            continue
        name = PREFIX + str(problem["loc"][0]).upper()
        if problem["type"] == "missing":
            lines.append(f"{name} is missing")
        elif problem["type"] in _MUST_BE or message.startswith(_SHOULD_BE):
            wanted = _MUST_BE.get(problem["type"], message.removeprefix(_SHOULD_BE))
            lines.append(f"{name} must be {wanted}")
        else:
            lines.append(f"{name} is malformed: {message}")
    return "; ".join(dict.fromkeys(lines))


# The files of `keyturn init`, and the settings that each one alone or with others has.
_WORKER_FILE, _PUBLISHER_FILES = "keyturn.env", ("publisher.env", "gateway.env", "console.env")
FILES_OF_INIT: Final = {
    **dict.fromkeys(("AMQP_URL", "EVENT_PUBLIC_KEY"), (_WORKER_FILE, *_PUBLISHER_FILES)),
    "S3_BUCKET": (_WORKER_FILE, "publisher.env", "gateway.env"),
    "MASTER_KEYS": (_WORKER_FILE, "gateway.env"),
    **dict.fromkeys(
        ("ACTIVE_MASTER_KEY", "INTAKE_KEYS", "EVENT_KEY", "PUBLISHERS"), (_WORKER_FILE,)
    ),
    **dict.fromkeys(("PUBLISHER_NAME", "PUBLISHER_KEY", "INTAKE_PUBLIC_KEY"), _PUBLISHER_FILES),
    "CONSOLE_SESSION_KEY": ("console.env",),
    "CONSOLE_PASSWORD_FILE": ("console.env",),
}


def _where_missing(error: ValidationError) -> str:
    """Name the files of `keyturn init` that usually have all the missing settings."""
    missing = [
        str(problem["loc"][0]).upper() for problem in error.errors() if problem["type"] == "missing"
    ]
    known = [FILES_OF_INIT.get(name, ()) for name in missing]
    files = [file for file in known[0] if all(file in each for each in known)] if known else []
    if not files:
        return ""
    *others, last = files
    named = f"{', '.join(others)} or {last}" if others else last
    them = "them" if len(missing) > 1 else "it"
    return (
        f"; `keyturn init` writes {them} to {named}: name the file with --env-file or "
        f"{ENV_FILE_VARIABLE}"
    )


def _in_quotes(fields: Iterable[str]) -> str:
    """Name the settings with quotes around them: a likely cause of malformed ones."""
    names = [PREFIX + field.upper() for field in fields]
    quoted = [name for name in names if _QUOTED.fullmatch(os.environ.get(name, ""))]
    if not quoted:
        return ""
    verb = "is" if len(quoted) == 1 else "are"
    return f"; {', '.join(quoted)} {verb} in quotes, which `docker run --env-file` does not remove"


def json_text(value: str) -> str:
    """Return the text of a JSON setting, without the single quotes of a line in an env file.

    A shell and compose remove them; `docker run --env-file` and podman pass them on. No JSON begins
    with one, so they cannot mean anything else.
    """
    quoted = _QUOTED_JSON.fullmatch(value.strip())
    return quoted[1] if quoted else value


def seed_from_b64(value: object) -> bytes:
    """Decode the base64 of 32 bytes.

    Raises:
        ValueError: anything else; the text does not repeat it.
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
    """The workers' public intake key, and the id by which requests name it."""

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
    # Base64 has no comma. A key named twice counts once.
    keys = (VerifyKey.from_bytes(seed_from_b64(part)) for part in value.split(","))
    return tuple({key.id: key for key in keys}.values())


def _intake_public_key(value: object) -> object:
    if isinstance(value, NamedIntakeKey):
        return value
    name, _, encoded = str(value).strip().partition(":")
    if not is_short_name(name):
        raise ValueError("must read id:base64")
    try:
        return NamedIntakeKey(name, IntakePublicKey.from_bytes(from_base64(encoded)))
    except ValueError:
        raise ValueError("must read id:base64, of a public key of 1216 bytes") from None


SigningKeySetting = Annotated[SigningKey, NoDecode, BeforeValidator(_signing_key)]
SigningKeysSetting = Annotated[tuple[SigningKey, ...], NoDecode, BeforeValidator(_signing_keys)]
VerifyKeysSetting = Annotated[
    tuple[VerifyKey, ...], NoDecode, BeforeValidator(_verify_keys), Field(min_length=1)
]
IntakePublicKeySetting = Annotated[NamedIntakeKey, NoDecode, BeforeValidator(_intake_public_key)]


def _has_host(url: str) -> bool:
    """Return whether a URL has a valid host name, and a valid port if it has any."""
    try:
        parts = urlsplit(url)
        labels = (parts.hostname or "").removesuffix(".").split(".")
        _ = parts.port
    except ValueError:
        return False
    return all(1 <= len(label) <= _LABEL_MAX for label in labels)


def _check_host(url: str) -> str:
    if not _has_host(url):
        raise ValueError("it has no valid host name or port")
    return url


Url = Annotated[str, Field(pattern=r"^https?://"), AfterValidator(_check_host)]
# Options that the client library would read from the address.
_TLS_OPTIONS: Final = {
    "cafile": "set KEYTURN_AMQP_CA_FILE",
    "capath": "set KEYTURN_AMQP_CA_FILE",
    "cadata": "set KEYTURN_AMQP_CA_FILE",
    "certfile": "set KEYTURN_AMQP_CERT_FILE",
    "keyfile": "set KEYTURN_AMQP_KEY_FILE",
    "no_verify_ssl": "certificates are always verified",
}
AmqpUrl = Annotated[SecretStr, Field(min_length=1)]  # it holds a password


class BrokerTlsSettings(Settings):
    """TLS with the broker, for an `amqps://` URL.

    Attributes:
        amqp_ca_file: PEM certificates that verify the broker's; the system's if unset.
        amqp_cert_file: A client certificate in PEM, followed by its chain.
        amqp_key_file: Its key in PEM, set together with it.
    """

    amqp_ca_file: Path | None = None
    amqp_cert_file: Path | None = None
    amqp_key_file: Path | None = None

    @model_validator(mode="after")
    def _check_amqp_pair(self) -> Self:
        if (self.amqp_cert_file is None) != (self.amqp_key_file is None):
            raise ValueError("AMQP_CERT_FILE and KEYTURN_AMQP_KEY_FILE must be set together")
        return self


class DeploymentSettings(BrokerTlsSettings):
    """The common settings of all processes.

    Attributes:
        deployment: The name of the installation; signatures are bound to it.
        amqp_url: The broker's address, `amqp://` or `amqps://`. A secret: it holds a password.
    """

    deployment: Annotated[str, Field(pattern=SHORT_NAME_PATTERN)] = "default"
    amqp_url: AmqpUrl

    @model_validator(mode="after")
    def _check_amqp_url(self) -> Self:
        check_amqp_url(self.amqp_url.get_secret_value(), self)
        return self


def check_amqp_url(url: str, tls: BrokerTlsSettings) -> None:
    """Check a broker's address against the settings of TLS.

    Raises:
        ValueError: the address is malformed, or contradicts the settings. The text does not
            repeat the address.
    """
    if not url.startswith(("amqp://", "amqps://")):
        raise ValueError("AMQP_URL must begin with amqp:// or amqps://")
    if not _has_host(url):
        raise ValueError(
            "AMQP_URL is malformed: it has no valid host name or port; a slash, # or ? in a "
            "password must be percent-encoded"
        )
    named = {"AMQP_CA_FILE": tls.amqp_ca_file, "AMQP_CERT_FILE": tls.amqp_cert_file}
    for name, path in named.items():
        if path is not None and not url.startswith("amqps://"):
            raise ValueError(f"{name} is for TLS: KEYTURN_AMQP_URL must then begin with amqps://")
    options = parse_qs(url.partition("?")[2], keep_blank_values=True)
    for option, name in _TLS_OPTIONS.items():
        if option in options:
            raise ValueError(f"AMQP_URL must not contain {option}: {name}")


class S3Settings(Settings):
    """The bucket.

    Attributes:
        s3_endpoint_url: The server's address; None for AWS.
        s3_region: The bucket's region.
        s3_bucket: The bucket's name.
        s3_access_key_id: Without keys, the standard AWS chain provides credentials.
        s3_secret_access_key: Set together with `s3_access_key_id`.
        s3_ca_file: PEM certificates that verify the server's; the system's if unset.
        s3_cert_file: A client certificate in PEM, followed by its chain.
        s3_key_file: Its key in PEM, set together with it.
    """

    s3_endpoint_url: Url | None = None
    s3_region: str = "us-east-1"
    s3_bucket: Annotated[str, Field(min_length=3)]
    s3_access_key_id: str | None = None
    s3_secret_access_key: SecretStr | None = None
    s3_ca_file: Path | None = None
    s3_cert_file: Path | None = None
    s3_key_file: Path | None = None

    @model_validator(mode="after")
    def _check_pair(self) -> Self:
        if (self.s3_access_key_id is None) != (self.s3_secret_access_key is None):
            raise ValueError("S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY must be set together")
        return self

    @model_validator(mode="after")
    def _check_s3_tls(self) -> Self:
        if (self.s3_cert_file is None) != (self.s3_key_file is None):
            raise ValueError("S3_CERT_FILE and KEYTURN_S3_KEY_FILE must be set together")
        named = {"S3_CA_FILE": self.s3_ca_file, "S3_CERT_FILE": self.s3_cert_file}
        for name, path in named.items():
            if path is not None and (self.s3_endpoint_url or "").startswith("http://"):
                raise ValueError(
                    f"{name} is for TLS: KEYTURN_S3_ENDPOINT_URL must then begin with https://"
                )
        return self


class TracingSettings(Settings):
    """The switch for a process's traces (SPEC 6.11).

    Attributes:
        tracing: Needs the extra `otel`. OpenTelemetry's own variables configure the rest.
    """

    tracing: bool = False


class PublisherSettings(DeploymentSettings, TracingSettings):
    """The settings of a publishing service (SPEC 11). Staging bodies also needs `S3Settings`.

    Attributes:
        publisher_name: The name by which the workers know the publisher.
        publisher_key: The key that signs requests; an Ed25519 seed, base64 of 32 bytes.
        intake_public_key: The workers' public key that secrets are sealed to; `id:base64`.
        event_public_key: The keys that sign events, base64 of 32 bytes each, separated by
            commas (SPEC 6.10).
        pepper: The secret from which, with the API key, user KEKs are derived.
    """

    publisher_name: Annotated[str, Field(pattern=SHORT_NAME_PATTERN)]
    publisher_key: SigningKeySetting
    intake_public_key: IntakePublicKeySetting
    event_public_key: VerifyKeysSetting
    pepper: SecretStr = SecretStr("")


class GatewayClientSettings(Settings):
    """A gateway client's settings, if its caller passes no address or API key.

    Attributes:
        gateway_url: The gateway's address.
        gateway_ca_file: PEM certificates that verify the gateway's, beside the system's.
        api_key: The project's current API key.
    """

    gateway_url: str | None = None
    gateway_ca_file: Path | None = None
    api_key: SecretStr | None = None
