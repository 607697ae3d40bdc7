"""Sign-in at an OpenID Connect provider: a person's claims, role and name (SPEC 16.3).

The role claim is a string or a list, or nested: `realm_access.roles` is `roles` in `realm_access`,
unless a claim has that whole name. If the roles are addresses (`email`), only a verified address
counts.
"""

import asyncio
import hashlib
import re
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx2
from authlib.integrations.starlette_client import (  # type: ignore[import-untyped]
    OAuth,
    OAuthError,
)
from joserfc.errors import BadSignatureError, JoseError
from starlette.requests import Request

from keyturn.errors import SettingsError
from keyturn_workers.console.auth.person import Role
from keyturn_workers.console.settings import ConsoleSettings, is_private

_EMAIL: Final = "email"
# Characters that would hide or fake part of a displayed name, or end the name itself below.
_UNSAFE: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff()]+"
)
_NAME_MAX_CHARACTERS: Final = 80
_SUBJECT_MAX_CHARACTERS: Final = 110


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """The claims that give a role and a name.

    `role_claim` is a claim's name or the path to it. A person with one of its `view_roles` may
    view; with one of its `operate_roles` also change something.
    """

    role_claim: str
    view_roles: Collection[str]
    operate_roles: Collection[str]
    name_claim: str

    def role_of(self, claims: Mapping[str, Any]) -> Role | None:
        """Return a person's role; None if they have no role here."""
        values = self._values(claims)
        if not values.isdisjoint(self.operate_roles):
            return "operate"
        return None if values.isdisjoint(self.view_roles) else "view"

    def has_roles(self, claims: Mapping[str, Any]) -> bool:
        """Return whether the role claim exists, whatever its value."""
        return _find(claims, self.role_claim) is not None

    def name_of(self, claims: Mapping[str, Any]) -> str:
        """Return the actor of requests and audit records: the name in the claim, and the subject.

        People choose their names, so two can be equal; the subject is unique.
        """
        subject = _subject(claims["sub"])
        value = _find(claims, self.name_claim)
        name = _clean(value, _NAME_MAX_CHARACTERS) if isinstance(value, str) else ""
        return f"{name} ({subject})" if name and name != subject else f"({subject})"

    def _values(self, claims: Mapping[str, Any]) -> frozenset[str]:
        if self.role_claim == _EMAIL and claims.get("email_verified") is not True:
            return frozenset()
        value = _find(claims, self.role_claim)
        values = value if isinstance(value, list) else [value]
        return frozenset(each for each in values if isinstance(each, str))


def _find(claims: Mapping[str, Any], path: str) -> Any:
    if path in claims:
        return claims[path]
    first, _, rest = path.partition(".")
    inner = claims.get(first)
    return _find(inner, rest) if rest and isinstance(inner, dict) else None


def _subject(subject: str) -> str:
    """Return the subject, or its digest if it could not be shown as it is."""
    if _clean(subject, _SUBJECT_MAX_CHARACTERS) == subject:
        return subject
    return f"sha256:{hashlib.sha256(subject.encode(errors='replace')).hexdigest()}"


def _clean(text: str, max_characters: int) -> str:
    cleaned = " ".join(_UNSAFE.sub(" ", text).split())
    return cleaned if len(cleaned) <= max_characters else f"{cleaned[: max_characters - 1]}…"


ALGORITHMS: Final = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip
"""The accepted signatures: never `none`, and never one by a secret that the client shares."""
_DESCRIPTION: Final = "/.well-known/openid-configuration"
_OPTIONAL: Final = ("userinfo_endpoint", "end_session_endpoint")
_DEFAULT_ALGORITHMS: Final = ["RS256"]
_LEEWAY_S: Final = 60
# For one read or write; a whole step may take twice as long.
_TIMEOUT_S: Final = 10.0
_REFRESH_S: Final = 3600.0
_CODE_MAX: Final = 64
# Errors that a malformed response of the provider can cause.
_UNUSABLE: Final = (
    httpx2.InvalidURL,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
)


class ProviderError(Exception):
    """The provider does not respond, or its response is unusable. The text is for a person."""


class SignInRefusedError(Exception):
    """This sign-in is refused. The text says why, for a person."""


@dataclass(frozen=True, slots=True)
class _Connection:
    """Authlib's client, made from the provider's metadata."""

    client: Any
    description: dict[str, Any]
    read_at: float


class Provider:
    """The configured provider. Nothing is read from it before the first sign-in."""

    def __init__(
        self,
        settings: ConsoleSettings,
        rules: ClaimRules,
        redirect_uri: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Read the settings.

        Raises:
            SettingsError: there is no provider, or the file of CA certificates cannot be used.
        """
        if settings.console_oidc_issuer is None:
            raise SettingsError("KEYTURN_CONSOLE_OIDC_ISSUER is missing")
        self.issuer: Final = settings.console_oidc_issuer
        self._settings = settings
        self._rules = rules
        self._redirect_uri = redirect_uri
        self._clock = clock
        self._http: dict[str, Any] = {
            "timeout": _TIMEOUT_S,
            "verify": _tls(settings),
            "transport": transport,
        }
        self._connection: _Connection | None = None

    async def begin(self, request: Request) -> str:
        """Return the URL for the browser; `request.session` keeps the state of this sign-in.

        Raises:
            ProviderError: the provider does not respond.
        """
        client = (await self._connect()).client
        fields: dict[str, Any] = await client.create_authorization_url(self._redirect_uri)
        url = str(fields.pop("url"))
        await client.save_authorize_data(request, redirect_uri=self._redirect_uri, **fields)
        return url

    async def finish(self, request: Request) -> Mapping[str, Any]:
        """Return the claims of the person whom the provider sent back.

        Raises:
            ProviderError: the provider does not respond.
            SignInRefusedError: the response or its token is not acceptable.
        """
        connection = await self._connect()
        self._check_issuer(request, connection)
        try:
            async with asyncio.timeout(2 * _TIMEOUT_S):
                return await self._claims(request, connection)
        except BadSignatureError as exc:
            # A provider may reuse an id for another key, or use no ids.
            self._connection = None
            raise SignInRefusedError("the signature of its ID token is wrong") from exc
        except OAuthError as exc:
            raise SignInRefusedError(_oauth_reason(exc)) from exc
        except JoseError as exc:
            raise SignInRefusedError(f"its ID token is not valid: {exc.error}") from exc
        except (httpx2.HTTPError, TimeoutError, *_UNUSABLE) as exc:
            raise _unusable(exc) from exc

    async def end_session_url(self) -> str | None:
        """Return the page that ends the session at the provider; None if it has no such page."""
        try:
            connection = await self._connect()
        except ProviderError:
            return None
        if "end_session_endpoint" not in connection.description:
            return None
        client_id = self._settings.console_oidc_client_id
        fields: dict[str, str] = await connection.client.create_logout_url(client_id=client_id)
        return fields["url"]

    async def _claims(self, request: Request, connection: _Connection) -> Mapping[str, Any]:
        client = connection.client
        token: dict[str, Any] = await client.authorize_access_token(
            request,
            claims_options={
                "iss": {"essential": True, "values": [self.issuer]},
                "aud": {"essential": True, "values": [self._settings.console_oidc_client_id]},
            },
            leeway=_LEEWAY_S,
        )
        claims: dict[str, Any] | None = token.get("userinfo")
        if claims is None or not isinstance(claims.get("sub"), str) or not claims["sub"]:
            raise SignInRefusedError("it sent no ID token that names a person")
        if not self._rules.has_roles(claims) and "userinfo_endpoint" in connection.description:
            more: dict[str, Any] = await client.userinfo(token=token)
            if more.get("sub") != claims["sub"]:
                raise SignInRefusedError("its user info is about another person")
            return more | claims
        return claims

    def _check_issuer(self, request: Request, connection: _Connection) -> None:
        """Refuse a response of another provider (RFC 9207)."""
        issuer = request.query_params.get("iss")
        promised = connection.description.get("authorization_response_iss_parameter_supported")
        if issuer != self.issuer and (issuer is not None or promised is True):
            raise SignInRefusedError("the response does not come from the configured provider")

    async def _connect(self) -> _Connection:
        known = self._connection
        if known is not None and self._clock() - known.read_at < _REFRESH_S:
            return known
        try:
            async with asyncio.timeout(2 * _TIMEOUT_S):
                description = await self._describe()
                connection = _Connection(self._client(description), description, self._clock())
        except (httpx2.HTTPError, TimeoutError, *_UNUSABLE) as exc:
            raise _unusable(exc) from exc
        self._connection = connection
        return connection

    async def _describe(self) -> dict[str, Any]:
        url = self.issuer.rstrip("/") + _DESCRIPTION
        async with httpx2.AsyncClient(**self._http) as http:
            response = await http.get(url)
            response.raise_for_status()
            description: dict[str, Any] = response.json()
        if description["issuer"] != self.issuer:
            raise ProviderError("The provider's issuer is not KEYTURN_CONSOLE_OIDC_ISSUER.")
        endpoints = ("authorization_endpoint", "token_endpoint", "jwks_uri")
        if not all(_is_usable(description.get(name)) for name in endpoints):
            raise ProviderError("The provider's addresses are not https:// URLs.")
        unusable = (name for name in _OPTIONAL if not _is_usable(description.get(name)))
        for name in unusable:
            description.pop(name, None)
        return description

    def _client(self, description: dict[str, Any]) -> Any:
        settings = self._settings
        offered = description.get("id_token_signing_alg_values_supported") or _DEFAULT_ALGORITHMS
        algorithms = [each for each in ALGORITHMS if each in offered]
        if not algorithms:
            raise ProviderError("The provider offers no accepted algorithm for ID tokens.")
        secret = settings.console_oidc_client_secret
        return OAuth().register(
            "provider",
            client_id=settings.console_oidc_client_id,
            client_secret=None if secret is None else secret.get_secret_value(),
            authorize_url=description["authorization_endpoint"],
            access_token_url=description["token_endpoint"],
            client_kwargs={
                "scope": settings.console_oidc_scopes,
                "code_challenge_method": "S256",
                "token_endpoint_auth_method": _auth_method(description, has_secret=bool(secret)),
                **self._http,
            },
            issuer=self.issuer,
            jwks_uri=description["jwks_uri"],
            id_token_signing_alg_values_supported=algorithms,
            **{name: description[name] for name in _OPTIONAL if name in description},
        )


def _is_usable(url: object) -> bool:
    return isinstance(url, str) and is_private(url)


def _tls(settings: ConsoleSettings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.console_oidc_ca_file)
    except OSError as exc:  # of ssl, too
        reason = "no certificate in PEM" if isinstance(exc, ssl.SSLError) else exc.strerror
        raise SettingsError(f"KEYTURN_CONSOLE_OIDC_CA_FILE cannot be used ({reason})") from exc


def _auth_method(description: dict[str, Any], *, has_secret: bool) -> str:
    """Return how the client authenticates: by HTTP Basic unless only a form is accepted."""
    if not has_secret:
        return "none"
    offered = description.get("token_endpoint_auth_methods_supported") or []
    by_form_alone = "client_secret_post" in offered and "client_secret_basic" not in offered
    return "client_secret_post" if by_form_alone else "client_secret_basic"


def _oauth_reason(exc: Any) -> str:
    code = exc.error if isinstance(exc.error, str) else ""
    if code == "mismatching_state":
        return "it was not started in this browser within the last 10 minutes"
    # The description is text of the provider, or of a page that sent the browser here.
    is_word = code.isascii() and code.replace("_", "").isalnum() and len(code) <= _CODE_MAX
    return f"the provider reported {code}" if is_word else "the provider refused it"


def _unusable(exc: BaseException) -> ProviderError:
    if isinstance(exc, httpx2.HTTPStatusError):
        return ProviderError(f"The provider responded with status {exc.response.status_code}.")
    if isinstance(exc, (httpx2.TimeoutException, TimeoutError)):
        return ProviderError("The provider did not respond in time.")
    if isinstance(exc, httpx2.HTTPError):
        return ProviderError("The provider cannot be reached.")
    return ProviderError("The provider's response is not usable.")
