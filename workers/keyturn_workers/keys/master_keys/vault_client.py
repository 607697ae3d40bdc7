"""Requests to HashiCorp Vault or OpenBao, and their tokens (SPEC 2.2, 11).

A process authenticates in one of four ways, by the settings: a token, a file with a token, AppRole,
or Kubernetes. A token from a login is renewed before it expires.

No error contains any part of a request or a response: a request contains the token, and a response
may repeat it. aiohttp's exceptions can contain both, so the chain of causes ends here.
"""

import asyncio
import math
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import aiohttp
import orjson
from pydantic import SecretStr

from keyturn.crypto.keys import Secret
from keyturn.errors import KmsUnavailableError, SettingsError
from keyturn_workers.core.vault_access import VaultAccess
from keyturn_workers.keys.master_keys.port import KmsRefusedError

_MAX_RESPONSE_BYTES: Final = 64 * 2**10
# `asyncio.timeout` limits a call, logins included: aiohttp rounds up.
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None)
_REQUEST_ID: Final = re.compile(r"[0-9A-Za-z-]{1,64}")
_HEADER_VALUE: Final = re.compile(r"[!-~]+")
_MOUNT: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_REDIRECTS: Final = range(300, 400)
_OK: Final = 200
_FORBIDDEN: Final = 403
_LOGIN_REFUSED: Final = frozenset({400, 401, 403})
_LOST: Final = "the connection to Vault was lost"
# The part of a token's life after which it is renewed.
_RENEWED_AFTER: Final = 2 / 3
# A refused token that is still valid is not replaced more often.
_LOGIN_PAUSE_S: Final = 300.0

_REFUSED: Final = frozenset({400, 401, 403, 404, 405})
_STATUS: Final = {
    404: "no such path: the mount or the key does not exist",
    412: "this node has not caught up with the others",
    429: "too many requests, or a standby node that does not forward them",
    472: "this node is a disaster recovery secondary",
    473: "this node is a performance standby that does not forward requests",
    500: "an internal error, or no node is active yet",
    503: "it is sealed, or in maintenance",
}

ReadCredential = Callable[[], Secret]
"""Returns the current token or login credential; raises KmsUnavailableError without one."""


@dataclass(frozen=True, slots=True)
class VaultResponse:
    """The server's response: a status, and a JSON object if there was one.

    `repr` shows only the status: the body of a login contains a token.
    """

    status: int
    body: Mapping[str, object]

    def __repr__(self) -> str:
        return f"VaultResponse({self.status})"

    @property
    def request_id(self) -> str | None:
        """The server's id of this call, as in its audit log."""
        value = self.body.get("request_id")
        return value if isinstance(value, str) and _REQUEST_ID.fullmatch(value) else None

    def section(self, name: str) -> Mapping[str, object]:
        """The section `data` or `auth`; empty if there is none."""
        value = self.body.get(name)
        return value if isinstance(value, dict) else {}

    def says(self, phrase: str) -> bool:
        """Return whether one of the server's errors or warnings contains this phrase."""
        texts: list[object] = []
        for name in ("errors", "warnings"):
            value = self.body.get(name)
            texts.extend(value if isinstance(value, list) else [])
        return any(phrase in text for text in texts if isinstance(text, str))

    def failure(self) -> KmsUnavailableError:
        """The error for a status without a special meaning for the request."""
        kind = KmsRefusedError if self.status in _REFUSED else KmsUnavailableError
        return kind(f"Vault responded with {self.status}: {_STATUS.get(self.status, 'unexpected')}")


class VaultClient:
    """An authenticated client of one server. Contacts nothing when created.

    `address` is a URL without a path; `timeout_s` limits each call, logins included.

    Raises:
        SettingsError: not exactly one way to authenticate is set, or a setting is malformed.
    """

    def __init__(self, address: str, access: VaultAccess, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._http = VaultHttp(address, access)
        self._auth = open_auth(self._http, access)

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        repeat: bool = True,
    ) -> VaultResponse:
        """Send a request; after a 403 once more, if there is another token.

        The time limit includes logins. For the arguments see `VaultHttp.call`.

        Raises:
            KmsUnavailableError: no response in time, or the token is refused.
        """
        async with self._in_time():
            token = await self._auth.token()
            response = await self._http.call(method, path, token=token, body=body, repeat=repeat)
            if response.status == _FORBIDDEN:
                other = await self._auth.replace(token)
                if other is not None:
                    response = await self._http.call(
                        method, path, token=other, body=body, repeat=repeat
                    )
        if response.status == _FORBIDDEN:
            raise self._auth.refusal(
                f"Vault refuses the token: it is expired or revoked, or may not use {path}"
            )
        return response

    async def call_once(self, method: str, path: str) -> VaultResponse:
        """Send a request that may get a 403 for other reasons than its token.

        Raises:
            KmsUnavailableError: as `call`.
        """
        async with self._in_time():
            return await self._http.call(method, path, token=await self._auth.token())

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError:
            raise KmsUnavailableError(f"Vault did not respond in {self._timeout_s:g} s") from None


# Authentication.


class TokenAuth:
    """A token that another program renews or replaces."""

    def __init__(self, read: ReadCredential) -> None:
        self._read = read

    async def token(self) -> Secret:
        """Return the current token.

        Raises:
            KmsUnavailableError: there is no token.
        """
        return self._read()

    async def replace(self, refused: Secret) -> Secret | None:
        """Return a token other than the refused one, or None if there is no other."""
        token = self._read()
        return None if token == refused else token

    def refusal(self, reason: str) -> KmsRefusedError:
        """The error after a token was refused and not replaced."""
        return _refusal(reason, self._read)


def _refusal(reason: str, read: ReadCredential) -> KmsRefusedError:
    """The error after the current credential was refused."""

    def current() -> Secret | None:
        try:
            return read()
        except KmsUnavailableError:
            return None

    refused = current()
    return KmsRefusedError(reason, has_new_credential=lambda: current() not in (None, refused))


@dataclass(frozen=True, slots=True)
class Login:
    """A login by one auth method.

    Attributes:
        path: The path below `/v1/`.
        fields: The other fields of the login request.
        credential_field: The name of the credential's field.
        read: Reads the credential.
        refusal: The error text when the server refuses the login.
    """

    path: str
    fields: Mapping[str, str]
    credential_field: str
    read: ReadCredential
    refusal: str


@dataclass(frozen=True, slots=True)
class _Lease:
    token: Secret
    renewable: bool
    length_s: float
    renew_at_s: float
    ends_at_s: float


class LoginAuth:
    """A token from a login; the first call after two thirds of its lifetime renews it."""

    def __init__(
        self, http: "VaultHttp", login: Login, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._http = http
        self._login = login
        self._clock_s = clock_s
        self._lease: _Lease | None = None
        self._login_s = -math.inf
        self._refusal: KmsRefusedError | None = None
        self._lock = asyncio.Lock()

    async def token(self) -> Secret:
        """Return the token; log in, or renew it, if that is due.

        Raises:
            KmsUnavailableError: the login is refused, or the server does not respond.
        """
        lease = self._current()
        if lease is not None and (self._clock_s() < lease.renew_at_s or self._lock.locked()):
            return lease.token
        is_waiting = self._lock.locked()
        async with self._lock:
            lease = self._current()  # again, after the wait
            if lease is None and is_waiting and self._refusal is not None:
                raise KmsRefusedError(self._refusal.detail)  # the login that this call waited for
            if lease is None:
                lease = await self._log_in()
            elif self._clock_s() >= lease.renew_at_s:
                lease = await self._extend(lease)
            self._lease = lease
            return lease.token

    async def replace(self, refused: Secret) -> Secret | None:
        """Log in again, unless another call has done so; None if the refused token stays.

        A valid token may not use this path, but keys of other paths need it. A login may give one
        with more policies, so one is tried at times. The token stays if that fails.
        """
        async with self._lock:
            lease = self._current()
            if lease is not None and lease.token != refused:
                return lease.token
            is_valid = lease is not None and await self._is_valid(lease)
            if is_valid and self._clock_s() - self._login_s < _LOGIN_PAUSE_S:
                return None
            try:
                lease = self._lease = await self._log_in()
            except KmsUnavailableError:
                if is_valid:
                    return None
                raise
            return lease.token

    def refusal(self, reason: str) -> KmsRefusedError:
        """The error after a token and its replacement were refused."""
        return _refusal(reason, self._login.read)

    def _current(self) -> _Lease | None:
        lease = self._lease
        return lease if lease is not None and self._clock_s() < lease.ends_at_s else None

    async def _is_valid(self, lease: _Lease) -> bool:
        response = await self._http.call("GET", "auth/token/lookup-self", token=lease.token)
        return response.status == _OK

    async def _extend(self, lease: _Lease) -> _Lease:
        """Renew a token before it expires, or log in; ignore failures until it expires."""
        try:
            return await self._renew(lease) or await self._log_in()
        except KmsUnavailableError:
            now_s = self._clock_s()
            return replace(lease, renew_at_s=now_s + (lease.ends_at_s - now_s) / 4)

    async def _renew(self, lease: _Lease) -> _Lease | None:
        """Return None if the token cannot be renewed, or hardly, near its maximum lifetime."""
        if not lease.renewable:
            return None
        began_s = self._clock_s()
        path = "auth/token/renew-self"
        response = await self._http.call("POST", path, token=lease.token, body={})
        renewed = None if response.status != _OK else _read_lease(response, began_s)
        return renewed if renewed and renewed.length_s >= lease.length_s / 2 else None

    async def _log_in(self) -> _Lease:
        login, began_s = self._login, self._clock_s()
        self._login_s = began_s
        credential = login.read().reveal().decode("ascii")
        body = {**login.fields, login.credential_field: credential}
        response = await self._http.call("POST", login.path, body=body)
        if response.status in _LOGIN_REFUSED:
            self._refusal = self.refusal(login.refusal)
            raise self._refusal
        self._refusal = None
        if response.status != _OK:
            raise response.failure()
        lease = _read_lease(response, began_s)
        if lease is None:
            raise KmsUnavailableError("Vault's response to the login has no token")
        return lease


def _read_lease(response: VaultResponse, began_s: float) -> _Lease | None:
    match response.section("auth"):
        case {
            "client_token": str(text),
            "lease_duration": int(length),
            "renewable": bool(renewable),
        }:
            # 0 means a token that does not expire.
            length_s = float(length) if length > 0 else math.inf
        case _:
            return None
    try:
        token = Secret(header_value(text).encode())
    except ValueError:
        return None
    renew_at_s = began_s + length_s * _RENEWED_AFTER
    return _Lease(token, renewable, length_s, renew_at_s, began_s + length_s)


def open_auth(http: "VaultHttp", access: VaultAccess) -> TokenAuth | LoginAuth:
    """Return the one way to authenticate that the settings name. Contacts nothing.

    Raises:
        SettingsError: they name none or several, or the way is incomplete or malformed.
    """
    ways = {
        "token": access.token,
        "token_file": access.token_file,
        "role_id": access.role_id,
        "kubernetes_role": access.kubernetes_role,
    }
    if sum(value is not None for value in ways.values()) != 1:
        names = ", ".join(access.setting(name) for name in ways)
        raise SettingsError(f"a key in Vault needs exactly one of {names}")
    if access.role_id is None and (access.secret_id or access.secret_id_file):
        raise SettingsError(f"{access.setting('role_id')} is missing beside the secret id")
    if access.token is not None:
        return TokenAuth(_given(access.setting("token"), access.token))
    if access.token_file is not None:
        return TokenAuth(_in_file(access, "token_file"))
    if access.role_id is not None:
        return LoginAuth(http, _approle(access, access.role_id))
    return LoginAuth(http, _kubernetes(access, access.kubernetes_role or ""))


def _given(setting: str, value: SecretStr) -> ReadCredential:
    """Return a reader of a credential in a setting."""
    try:
        credential = Secret(header_value(value.get_secret_value()).encode())
    except ValueError as exc:
        raise SettingsError(f"{setting} is malformed: {exc}") from None
    return lambda: credential


def _in_file(access: VaultAccess, field: str) -> ReadCredential:
    """Return a reader of a file that Vault Agent, a secrets operator or Kubernetes renews."""
    path: str | Path = getattr(access, field) or Path()
    never_sent = "has a credential of the master keys or the pod, which no store is sent"
    if access.never_sent.include_file(path):
        raise SettingsError(f"the file that {access.setting(field)} names {never_sent}")

    def read() -> Secret:
        # Read each time, as the file is small and in the page cache: even a change within one
        # clock tick is noticed.
        try:
            credential = Secret(header_value(Path(path).read_text(encoding="ascii")).encode())
            if not access.never_sent.include(credential):
                return credential
            reason = never_sent  # by now
        except OSError as exc:
            reason = f"cannot be read ({exc.strerror})"
        except ValueError:
            reason = "is not one word of printable ASCII"
        raise KmsUnavailableError(f"the file that {access.setting(field)} names {reason}")

    return read


def _approle(access: VaultAccess, role_id: str) -> Login:
    given = access.secret_id
    if (given is None) == (access.secret_id_file is None):
        raise SettingsError(
            f"{access.setting('role_id')} needs exactly one of {access.setting('secret_id')} and "
            f"{access.setting('secret_id_file')}"
        )
    if given is not None:
        read = _given(access.setting("secret_id"), given)
    else:
        read = _in_file(access, "secret_id_file")
    return Login(
        path=f"auth/{_auth_mount(access, 'approle')}/login",
        fields={"role_id": role_id},
        credential_field="secret_id",
        read=read,
        refusal=(
            f"Vault refuses the AppRole login: check {access.setting('role_id')}, and that the "
            "secret id is not expired"
        ),
    )


def _kubernetes(access: VaultAccess, role: str) -> Login:
    return Login(
        path=f"auth/{_auth_mount(access, 'kubernetes')}/login",
        fields={"role": role},
        credential_field="jwt",
        read=_in_file(access, "kubernetes_token_file"),
        refusal=(
            f"Vault refuses the Kubernetes login: check {access.setting('kubernetes_role')}, and "
            "the service accounts that this role is bound to"
        ),
    )


def _auth_mount(access: VaultAccess, default: str) -> str:
    mount = (access.auth_mount or default).strip("/")
    if not _MOUNT.fullmatch(mount):
        raise SettingsError(
            f"{access.setting('auth_mount')} is malformed: not the path of an auth method"
        )
    return mount


# One exchange over HTTP.


def header_value(value: str) -> str:
    """Strip a value for use in a header.

    Raises:
        ValueError: it is empty, or contains a space, a line break or another unprintable character.
    """
    stripped = value.strip()
    if not _HEADER_VALUE.fullmatch(stripped):
        raise ValueError("not one word of printable ASCII")
    return stripped


class VaultHttp:
    """A pool of connections to one server.

    Raises:
        SettingsError: the namespace is not a valid header value, or the CA file has no
            certificates.
    """

    def __init__(self, address: str, access: VaultAccess) -> None:
        self._address = address
        self._tls = _tls(access)
        # `identity`: a small compressed response could unpack to a large one.
        self._headers = {"X-Vault-Request": "true", "Accept-Encoding": "identity"}
        if access.namespace is not None:
            try:
                self._headers["X-Vault-Namespace"] = header_value(access.namespace)
            except ValueError as exc:
                raise SettingsError(f"{access.setting('namespace')} is malformed: {exc}") from None
        self._session: aiohttp.ClientSession | None = None

    async def call(
        self,
        method: str,
        path: str,
        *,
        token: Secret | None = None,
        body: Mapping[str, object] | None = None,
        repeat: bool = True,
    ) -> VaultResponse:
        """Send one request to `/v1/{path}`, without following a redirect.

        Args:
            method: GET or POST.
            path: A path below `/v1/`, with only characters that a URL need not quote.
            token: Sent as `X-Vault-Token`.
            body: Sent as JSON.
            repeat: True if the request may be sent twice. A server that restarts drops idle
                connections, and the next request on each would fail.

        Raises:
            KmsUnavailableError: no response, a redirect, or not a small JSON object.
        """
        headers = dict(self._headers)
        if token is not None:
            headers["X-Vault-Token"] = token.reveal().decode("ascii")
        data = None if body is None else orjson.dumps(body)
        for last in (not repeat, True):
            try:
                return await self._exchange(method, path, headers, data)
            except (aiohttp.ClientError, OSError, ValueError) as exc:
                cause = _cause(exc)
            if last or cause != _LOST:
                break
        # Raised here, the error does not even have aiohttp's error as its context.
        raise KmsUnavailableError(cause)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], data: bytes | None
    ) -> VaultResponse:
        if self._session is None:
            self._session = self._open_session()
        async with self._session.request(
            method, f"{self._address}/v1/{path}", headers=headers, data=data, allow_redirects=False
        ) as response:
            if response.status in _REDIRECTS:
                # Following it would send the token to another server.
                raise KmsUnavailableError(
                    "Vault redirects to another node: use the cluster's or the active node's "
                    "address"
                )
            return VaultResponse(response.status, await _json_object(response))

    def _open_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # The caller limits their number. In a full pool busy callers overtake waiting ones,
            # which then run into their time limit.
            connector=aiohttp.TCPConnector(limit=0, ssl=self._tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=_NO_TIMEOUT,
            auto_decompress=False,
        )


async def _json_object(response: aiohttp.ClientResponse) -> Mapping[str, object]:
    content = bytearray()
    async for piece in response.content.iter_any():
        content += piece
        if len(content) > _MAX_RESPONSE_BYTES:
            raise KmsUnavailableError("Vault's response is too large")
    if not content:
        return {}
    try:
        value = orjson.loads(content)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise KmsUnavailableError(
            f"the response of status {response.status} is not Vault's: not a JSON object"
        )
    return value


def _tls(access: VaultAccess) -> ssl.SSLContext | bool:
    if access.ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=access.ca_file)
    except (OSError, ValueError):
        raise SettingsError(
            f"{access.setting('ca_file')} is not a readable file of PEM certificates"
        ) from None


def _cause(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "Vault's certificate is not valid for this address, or not signed by a trusted CA"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "Vault cannot be reached"
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return _LOST
    return "the response is not Vault's: not valid HTTP"
