"""Settings of the workers, the gateway and the operator's commands (SPEC 11).

A publisher's settings are in `keyturn.settings`, those of single commands in `cli.settings`. No
other module of `keyturn_workers` reads the environment. Each process reads only the class that it
needs: a command that only lists a bucket never requires a master key.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeAlias

import orjson
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    HttpUrl,
    PlainValidator,
    SecretStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_settings import NoDecode
from yarl import URL

from keyturn.crypto.intake import IntakeKey
from keyturn.crypto.keys import Secret
from keyturn.errors import SettingsError
from keyturn.identifiers import SHORT_NAME_PATTERN
from keyturn.messages.requests import INLINE_MAX_BYTES
from keyturn.settings import (
    PREFIX,
    DeploymentSettings,
    NamedIntakeKey,
    PublisherSettings,
    S3Settings,
    Settings,
    SigningKeySetting,
    SigningKeysSetting,
    TracingSettings,
    Url,
    json_text,
    seed_from_b64,
)
from keyturn.topology import AUDIT_MAX_AGE_S, AUDIT_MAX_BYTES
from keyturn_workers.core.customer_key_stores import (
    CustomerKeyStore,
    parse_customer_key_stores,
)
from keyturn_workers.core.grants import Grant, parse_grants
from keyturn_workers.core.key_uris import KeyUri, Pkcs11Uri, is_key_uri, parse_key_uri
from keyturn_workers.core.named_settings import parse_named_settings, text_of_setting
from keyturn_workers.core.source_mapping import Source, parse_sources
from keyturn_workers.core.vault_access import (
    KUBERNETES_TOKEN_FILE,
    MasterKeyCredentials,
    VaultAccess,
)
from keyturn_workers.process.grants_file import GrantsFile

MasterKeySource: TypeAlias = Secret | KeyUri
"""A master key's 32 bytes, or the URI of a key held elsewhere."""

_DAY_S: Final = 24 * 3600
_GIB: Final = 1024**3
_MIB: Final = 1024**2
ANY_ORIGIN: Final = "*"
"""As a CORS origin: any origin."""
_ORIGIN: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[1-9][0-9]{0,4}))?"
)
# The files of the standard AWS chain that have a token.
_AWS_TOKEN_FILES: Final = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}


def _master_keys(value: object) -> dict[str, MasterKeySource]:
    keys = parse_named_settings(text_of_setting(value))
    return {name: _master_key(key) for name, key in keys.items()}


def _master_key(value: object) -> MasterKeySource:
    if isinstance(value, str) and is_key_uri(value):
        return parse_key_uri(value)
    return Secret(seed_from_b64(value))


def _intake_keys(value: object) -> dict[str, IntakeKey]:
    seeds = parse_named_settings(text_of_setting(value))
    return {name: IntakeKey.from_seed(seed_from_b64(seed)) for name, seed in seeds.items()}


def _publishers(value: object) -> Mapping[str, Grant]:
    if isinstance(value, str) and not json_text(value).lstrip().startswith("{"):
        return GrantsFile(Path(value.strip()))
    return parse_grants(value)


_HTTP_URL: Final = TypeAdapter(HttpUrl)


def _public_url(value: str) -> str:
    try:
        url = _HTTP_URL.validate_python(value)
    except ValidationError:
        raise ValueError("not an http:// or https:// URL") from None
    if url.username is not None or url.password is not None:
        raise ValueError("the URL must have no user name and no password")
    if "?" in value or "#" in value:
        raise ValueError("the URL must have no query and no fragment")
    return str(url).rstrip("/")


PublicUrl = Annotated[str, AfterValidator(_public_url)]


def _cors_origins(value: object) -> tuple[str, ...]:
    try:
        origins = orjson.loads(json_text(value)) if isinstance(value, str) else value
    except orjson.JSONDecodeError:
        origins = None
    if not isinstance(origins, list | tuple) or not all(isinstance(one, str) for one in origins):
        raise ValueError('not a JSON list of origins, such as ["https://app.example.com"]')
    for number, origin in enumerate(origins, 1):
        # Origins are compared literally: the list must have the exact text that a browser sends.
        if origin != ANY_ORIGIN and not _is_origin(origin):
            raise ValueError(
                f"entry {number} is not an origin as browsers send it: scheme://host or "
                "scheme://host:port, in lower case, without a path and without the default port"
            )
    if ANY_ORIGIN in origins and len(origins) > 1:
        raise ValueError(f"{ANY_ORIGIN} allows every origin, so it must be the only entry")
    return tuple(origins)


def _is_origin(text: str) -> bool:
    match = _ORIGIN.fullmatch(text)
    return match is not None and match["port"] != _DEFAULT_PORTS.get(match["scheme"], "")


MasterKeys = Annotated[dict[str, MasterKeySource], NoDecode, BeforeValidator(_master_keys)]
IntakeKeys = Annotated[dict[str, IntakeKey], NoDecode, BeforeValidator(_intake_keys)]
# Pydantic's own validation would copy the mapping; it must stay the object that rereads the file.
Publishers = Annotated[Mapping[str, Grant], NoDecode, PlainValidator(_publishers)]
Sources = Annotated[dict[str, Source], NoDecode, BeforeValidator(parse_sources)]
CustomerKeyStores = Annotated[
    dict[str, CustomerKeyStore], NoDecode, BeforeValidator(parse_customer_key_stores)
]
CorsOrigins = Annotated[tuple[str, ...], NoDecode, PlainValidator(_cors_origins)]
LogFormat = Literal["console", "json"]


class LogSettings(Settings):
    """Settings of logging."""

    log_format: LogFormat = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class KmsSettings(Settings):
    """Settings for master keys in a KMS, Vault or token (SPEC 2.2, 11)."""

    # A derived KEK in use is derived again before this age.
    kms_cache_s: Annotated[int, Field(ge=1)] = 3600
    # While the provider does not answer, a KEK is kept at most this long.
    kms_cache_max_s: Annotated[int, Field(ge=1)] = _DAY_S
    # Limits one call to a provider, and also a request's whole wait for a free slot.
    kms_timeout_s: Annotated[float, Field(gt=0)] = 5
    # Limits of this process for each master key.
    kms_concurrency: Annotated[int, Field(ge=1, le=1000)] = 16
    kms_requests_per_s: Annotated[int, Field(ge=1, le=100_000)] = 500
    # PKCS #11: the module, if the URI names none; the PIN, or a file that is reread.
    pkcs11_module: Path | None = None
    pkcs11_pin: SecretStr | None = None
    pkcs11_pin_file: Path | None = None
    # Sessions with the token, and threads that wait for it; at most KMS_CONCURRENCY.
    pkcs11_sessions: Annotated[int, Field(ge=1, le=1000)] = 4
    # AWS KMS: only for endpoints other than AWS's own. Credentials: the standard AWS chain.
    aws_kms_endpoint_url: Url | None = None
    # Vault and OpenBao: a token, a token file that is reread, AppRole, or Kubernetes.
    vault_token: SecretStr | None = None
    vault_token_file: Path | None = None
    vault_role_id: str | None = None
    vault_secret_id: SecretStr | None = None
    vault_secret_id_file: Path | None = None
    vault_kubernetes_role: str | None = None
    vault_kubernetes_token_file: Path = KUBERNETES_TOKEN_FILE
    # The path of the auth method; `approle` or `kubernetes` if unset.
    vault_auth_mount: str | None = None
    vault_namespace: str | None = None
    vault_ca_file: Path | None = None

    @model_validator(mode="after")
    def _check_cache_times(self) -> Self:
        if self.kms_cache_max_s < self.kms_cache_s:
            raise ValueError("KMS_CACHE_MAX_S must not be below KMS_CACHE_S")
        return self

    @property
    def vault(self) -> VaultAccess:
        """How to authenticate with the Vault of the master keys."""
        names = {each.name for each in fields(VaultAccess)} - {"setting", "never_sent"}
        return VaultAccess(
            setting=lambda name: f"{PREFIX}VAULT_{name.upper()}",
            **{name: getattr(self, f"vault_{name}") for name in names},
        )

    @property
    def master_key_credentials(self) -> MasterKeyCredentials:
        """The credentials of the master keys and of the pod, which no store is ever sent."""
        files = (
            KUBERNETES_TOKEN_FILE,
            self.vault_kubernetes_token_file,
            self.vault_token_file,
            self.vault_secret_id_file,
            self.pkcs11_pin_file,
            *map(os.environ.get, _AWS_TOKEN_FILES),
        )
        values = (self.vault_token, self.vault_secret_id, self.pkcs11_pin)
        return MasterKeyCredentials(
            tuple(Path(file) for file in files if file),
            tuple(Secret(value.get_secret_value().strip().encode()) for value in values if value),
        )


class OperatorSettings(S3Settings, KmsSettings):
    """Access to everything: the bucket and the master keys."""

    master_keys: MasterKeys

    @property
    def master_key_credentials(self) -> MasterKeyCredentials:
        """See `KmsSettings.master_key_credentials`; also the PINs' files that URIs name."""
        found = super().master_key_credentials
        uris = (key for key in self.master_keys.values() if isinstance(key, Pkcs11Uri))
        pins = (Path(uri.pin_source) for uri in uris if uri.pin_source)
        return replace(found, files=(*found.files, *pins))


class CustomerKeySettings(KmsSettings):
    """The stores of customer keys (SPEC 2.6). They use only the AWS endpoint of `KmsSettings`."""

    customer_key_stores: CustomerKeyStores = Field(default_factory=dict)
    # A customer secret is forgotten at this age, and asked for again at a quarter of it.
    customer_key_cache_s: Annotated[float, Field(ge=10, le=3600)] = 300


class SourceSettings(S3Settings):
    """The buckets from which objects are ingested (SPEC 17)."""

    sources: Sources = Field(default_factory=dict)
    # How often an ingest worker lists each source that it watches.
    source_poll_s: Annotated[float, Field(gt=0)] = 300

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        for name, source in self.sources.items():
            if source.is_bucket_of(self):
                raise ValueError(f"SOURCES: source {name} is the bucket of KEYTURN_S3_BUCKET")
        return self


class AuditBounds(Settings):
    """Limits of the audit trail's stream (SPEC 15.3).

    Only for a new stream: a queue's arguments cannot change.
    """

    audit_max_age_s: Annotated[int, Field(ge=3600)] = AUDIT_MAX_AGE_S
    audit_max_bytes: Annotated[int, Field(ge=64 * _MIB)] = AUDIT_MAX_BYTES


class AuditSettings(DeploymentSettings, AuditBounds):
    """Settings of a command that records its actions in the audit trail."""

    # The first signs.
    event_key: SigningKeysSetting


class WorkerSettings(
    DeploymentSettings,
    OperatorSettings,
    CustomerKeySettings,
    SourceSettings,
    LogSettings,
    AuditBounds,
    TracingSettings,
):
    """Settings of a worker in any role."""

    active_master_key: Annotated[str, Field(pattern=SHORT_NAME_PATTERN)]
    intake_keys: IntakeKeys
    # The first signs; the others still verify messages in the retry queues.
    event_key: SigningKeysSetting
    publishers: Publishers
    # The signer of the role `ingest`: one of PUBLISHERS, with a grant for the sources.
    publisher_name: Annotated[str, Field(pattern=SHORT_NAME_PATTERN)] | None = None
    publisher_key: SigningKeySetting | None = None
    encryption_enabled: bool = True
    allow_unsafe_storage: bool = False
    lease_s: Annotated[int, Field(ge=1, le=3600)] = 15
    keyring_cache_s: Annotated[float, Field(ge=0)] = 2
    request_max_age_s: Annotated[int, Field(ge=1)] = 7 * _DAY_S
    # Staged bodies and abandoned multipart uploads are removed this long after the last moment
    # at which a request for them could have arrived.
    staging_grace_s: Annotated[int, Field(ge=0)] = _DAY_S
    staging_sweep_interval_s: Annotated[float, Field(gt=0)] = 3600
    upload_concurrency: Annotated[int, Field(ge=1, le=2000)] = 64
    # Bodies from staging stream a few at a time, so that memory stays bounded.
    stream_concurrency: Annotated[int, Field(ge=1, le=200)] = 4
    # Objects that one process reads, or copies, at once.
    sweep_concurrency: Annotated[int, Field(ge=1, le=2000)] = 64
    sweep_page_keys: Annotated[int, Field(ge=1, le=10_000)] = 500
    # How often a sweep worker looks for sweeps whose messages were lost.
    sweep_rescue_interval_s: Annotated[float, Field(gt=0)] = 600
    control_concurrency: Annotated[int, Field(ge=1, le=2000)] = 16
    # How often a process reports its activity on the stream `keyturn.workers`.
    worker_report_interval_s: Annotated[float, Field(gt=0, le=3600)] = 15
    part_size_bytes: Annotated[int, Field(ge=5 * _MIB, le=_GIB)] = 8 * _MIB
    copy_limit_bytes: Annotated[int, Field(ge=1)] = 5 * _GIB
    upload_max_bytes: Annotated[int, Field(ge=1, le=5 * _GIB)] = 5 * _GIB
    health_port: Annotated[int, Field(ge=0, le=65535)] = 0
    health_host: str = "127.0.0.1"
    shutdown_grace_s: Annotated[float, Field(gt=0)] = 60
    start_timeout_s: Annotated[float, Field(gt=0)] = 60

    @model_validator(mode="after")
    def _check_master_key(self) -> Self:
        if self.active_master_key not in self.master_keys:
            raise ValueError("ACTIVE_MASTER_KEY is not among MASTER_KEYS")
        if self.lease_s <= self.keyring_cache_s:
            raise ValueError("LEASE_S must be well above KEYRING_CACHE_S")
        return self

    def ingest_publisher(self) -> PublisherSettings:
        """The settings of the publisher that signs the requests of `ingest` (SPEC 17.4).

        Raises:
            SettingsError: its name or its key is missing.
        """
        if self.publisher_name is None or self.publisher_key is None:
            name = "NAME" if self.publisher_name is None else "KEY"
            raise SettingsError(
                f"KEYTURN_PUBLISHER_{name} is missing: the role ingest signs requests as one of "
                'KEYTURN_PUBLISHERS. Or set "watch": false in each of KEYTURN_SOURCES'
            )
        intake_id, intake_key = next(iter(self.intake_keys.items()))
        return PublisherSettings(
            deployment=self.deployment,
            amqp_url=self.amqp_url,
            amqp_ca_file=self.amqp_ca_file,
            amqp_cert_file=self.amqp_cert_file,
            amqp_key_file=self.amqp_key_file,
            tracing=self.tracing,
            publisher_name=self.publisher_name,
            publisher_key=self.publisher_key,
            intake_public_key=NamedIntakeKey(intake_id, intake_key.public_key),
            event_public_key=tuple(key.verify_key() for key in self.event_key),
        )


class GatewaySettings(PublisherSettings, OperatorSettings, CustomerKeySettings, LogSettings):
    """Settings of the gateway, which is a publisher and opens objects."""

    keyring_cache_s: Annotated[float, Field(ge=0, le=60)] = 2
    presign_plaintext: bool = True
    gateway_host: str = "127.0.0.1"
    gateway_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    # TLS on that port: PEM files, reread when they change. Neither: plain HTTP.
    gateway_tls_cert: Path | None = None
    gateway_tls_key: Path | None = None
    # Requests served at once; each download holds about 1 MiB.
    gateway_concurrency: Annotated[int, Field(ge=1, le=10_000)] = 256
    # Bodies above 256 KiB received at once: about 4 parts of 8 MiB each.
    gateway_upload_concurrency: Annotated[int, Field(ge=1, le=200)] = 8
    # Bytes that this gateway staged and that are not stored yet.
    gateway_staging_max_bytes: Annotated[int, Field(ge=1)] = 40 * _GIB
    # One project's share of each of the three limits above; never less than 1.
    gateway_project_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    # Uploads of one project that are published and have no outcome yet: their number, and the
    # bytes of their bodies on the broker. At least one body of the largest inline size.
    gateway_pending: Annotated[int, Field(ge=1, le=10_000)] = 256
    gateway_pending_bytes: Annotated[int, Field(ge=INLINE_MAX_BYTES)] = 64 * _MIB
    # Rotations of one project that are published or being swept.
    gateway_project_rotations: Annotated[int, Field(ge=1, le=100)] = 3
    # Lets the holder of a project's API key rotate it here without the operator.
    gateway_rotation: Literal["allowed", "forbidden"] = "allowed"
    # The base URL of links; by default, the scheme and Host header of the request for a link.
    gateway_public_url: PublicUrl | None = None
    # Keys of one project whose delete is published and has no outcome yet, in at most 64 requests.
    gateway_project_deletes: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    # Lets the holder of a project's API key delete its objects here.
    gateway_delete: Literal["allowed", "forbidden"] = "allowed"
    # The origins whose pages may read responses in a browser; none: no CORS headers.
    gateway_cors_origins: CorsOrigins = ()
    # A client whose request's head takes longer is disconnected.
    gateway_head_timeout_s: Annotated[float, Field(gt=0)] = 15
    # A client that reads or sends nothing for this long is disconnected.
    gateway_idle_timeout_s: Annotated[float, Field(gt=0)] = 60
    # How long the broker may take to confirm, reconnecting included, before the response is 503.
    gateway_publish_timeout_s: Annotated[float, Field(gt=0)] = 30
    gateway_wait_max_s: Annotated[float, Field(gt=0)] = 60
    upload_max_bytes: Annotated[int, Field(ge=1, le=5 * _GIB)] = 5 * _GIB
    shutdown_grace_s: Annotated[float, Field(gt=0)] = 60

    @model_validator(mode="after")
    def _check_gateway_tls(self) -> Self:
        if (self.gateway_tls_cert is None) != (self.gateway_tls_key is None):
            raise ValueError("GATEWAY_TLS_CERT and KEYTURN_GATEWAY_TLS_KEY must be set together")
        return self


def redacted(url: str) -> str | None:
    """Only scheme, host and port of a URL; None if it is malformed."""
    try:
        parsed = URL(url)
        return str(parsed.origin()) if parsed.host else None
    except ValueError:
        return None
