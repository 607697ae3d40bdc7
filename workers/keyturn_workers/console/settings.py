"""Settings of the operator's console (SPEC 11, 16).

The console is a publisher, so it reads publishers' settings, with its own name, key and grant. It
reads neither the bucket's settings nor a master key.
"""

import ipaddress
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

import orjson
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    SecretStr,
    model_validator,
)
from pydantic_settings import NoDecode

from keyturn.crypto.keys import Secret
from keyturn.settings import PublisherSettings, json_text, seed_from_b64
from keyturn_workers.process.settings import LogSettings, PublicUrl

_OPENID: Final = "openid"


def is_loopback(host: str) -> bool:
    """Return whether every browser takes a host name or address for its own machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def url_of(host: str, port: int, scheme: str = "http") -> str:
    """Return the origin of a server on this host and port."""
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_private(url: str) -> bool:
    """Return whether no one on the network can read a browser's requests to the URL."""
    parts = urlsplit(url)
    is_local = parts.scheme == "http" and is_loopback(parts.hostname or "")
    return is_local or parts.scheme == "https"


def _origin(url: str) -> str:
    if urlsplit(url).path:
        raise ValueError("must be an origin, such as https://console.example.com, without a path")
    if not is_private(url):
        raise ValueError("must be an https:// URL; http:// works only on a loopback address")
    return url


def _issuer(url: str) -> str:
    # Compared literally with the provider's own issuer, so a final slash counts.
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("not an https:// URL")
    if not is_private(url):
        raise ValueError("must be an https:// URL; http:// works only on a loopback address")
    return url


def _prometheus(value: object) -> SecretStr:
    text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be an http:// or https:// URL, such as http://prometheus:9090")
    return SecretStr(text)


def _session_key(value: object) -> Secret:
    return value if isinstance(value, Secret) else Secret(seed_from_b64(value))


def _names(value: object) -> tuple[str, ...]:
    try:
        names = orjson.loads(json_text(value)) if isinstance(value, str) else value
    except orjson.JSONDecodeError:
        names = None
    if not isinstance(names, list | tuple) or not all(isinstance(one, str) for one in names):
        raise ValueError('not a JSON list of names, such as ["operators"]')
    return tuple(names)


def _scopes(value: str) -> str:
    if _OPENID not in value.split():
        raise ValueError(f"must contain {_OPENID}")
    return " ".join(value.split())


PublicOrigin = Annotated[PublicUrl, AfterValidator(_origin)]
Issuer = Annotated[str, AfterValidator(_issuer)]
PrometheusUrl = Annotated[SecretStr, PlainValidator(_prometheus)]
SessionKey = Annotated[Secret, NoDecode, BeforeValidator(_session_key)]
Names = Annotated[tuple[str, ...], NoDecode, PlainValidator(_names)]
ClaimName = Annotated[str, Field(min_length=1, max_length=256)]
Color = Literal["teal", "blue", "green", "orange", "pink", "purple", "red"]
"""An accent color of the style sheet, legible in both themes."""


class ConsoleSettings(PublisherSettings, LogSettings):
    """The console is a publisher that people sign in to."""

    console_host: str = "127.0.0.1"
    console_port: Annotated[int, Field(ge=0, le=65535)] = 8090
    # TLS on that port: PEM files, read again when they change. Without them: plain HTTP.
    console_tls_cert: Path | None = None
    console_tls_key: Path | None = None
    # Tells the consoles of several deployments apart, with the deployment's name.
    console_color: Color = "teal"
    # The origin as browsers see it; needed behind a proxy.
    console_public_url: PublicOrigin | None = None
    # Signs the cookies. A new key signs everybody out.
    console_session_key: SessionKey
    # A session's maximum life, and its maximum time without a person's action.
    console_session_s: Annotated[int, Field(ge=1, le=7 * 24 * 3600)] = 8 * 3600
    console_idle_s: Annotated[int, Field(ge=1, le=7 * 24 * 3600)] = 3600
    # The file of signed-out sessions, so that a restart does not revive them.
    console_signed_out_file: Path | None = None
    console_password_file: Path | None = None
    console_oidc_issuer: Issuer | None = None
    console_oidc_client_id: Annotated[str, Field(min_length=1)] | None = None
    console_oidc_client_secret: SecretStr | None = None
    console_oidc_scopes: Annotated[str, AfterValidator(_scopes)] = "openid profile email"
    # The claim with the roles: a string or a list; if nested, the path with dots.
    console_oidc_role_claim: ClaimName = "roles"
    console_oidc_view_roles: Names = ("view",)
    console_oidc_operate_roles: Names = ("operate",)
    console_oidc_name_claim: ClaimName = "preferred_username"
    console_oidc_ca_file: Path | None = None
    # A Prometheus that scrapes the workers: charts of *Now* over more than an hour. The URL may
    # contain credentials.
    console_prometheus_url: PrometheusUrl | None = None
    shutdown_grace_s: Annotated[float, Field(gt=0)] = 60

    @property
    def console_scheme(self) -> str:
        """The URL scheme of the console's port."""
        return "http" if self.console_tls_cert is None else "https"

    @property
    def is_local(self) -> bool:
        """Whether browsers on this machine alone use the console."""
        url = self.console_public_url
        return is_loopback(self.console_host if url is None else urlsplit(url).hostname or "")

    @model_validator(mode="after")
    def _check_sign_in(self) -> Self:
        if (self.console_oidc_issuer is None) != (self.console_oidc_client_id is None):
            raise ValueError("CONSOLE_OIDC_ISSUER and CONSOLE_OIDC_CLIENT_ID must be set together")
        return self

    @model_validator(mode="after")
    def _check_console_tls(self) -> Self:
        if (self.console_tls_cert is None) != (self.console_tls_key is None):
            raise ValueError("CONSOLE_TLS_CERT and KEYTURN_CONSOLE_TLS_KEY must be set together")
        return self

    @model_validator(mode="after")
    def _check_public_url(self) -> Self:
        if self.console_public_url is None and not is_loopback(self.console_host):
            raise ValueError(
                "CONSOLE_PUBLIC_URL is missing: it is needed where CONSOLE_HOST is not a "
                "loopback address"
            )
        return self
