"""How a process authenticates to Vault or OpenBao (SPEC 2.2, 11).

One of four ways, by the settings: a token, a file with a token, AppRole, or Kubernetes. A token
that a login gave is renewed ahead of its end. What the server refused is remembered: until it
changes, it is used again only after 1, 2, 4 … 60 seconds, so that an expired credential in many
busy processes is no storm of requests.
"""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from keyturn.crypto import Secret
from keyturn.errors import KmsUnavailableError
from keyturn_workers.master_keys.port import KmsRefusedError
from keyturn_workers.master_keys.refusals import Clock, Refusals
from keyturn_workers.master_keys.vault_http import VaultHttp, VaultResponse, header_value

# The part of a token's life after which it is renewed.
_RENEWED_AFTER: Final = 2 / 3
_OK: Final = 200
_LOGIN_REFUSED: Final = frozenset({400, 401, 403})


class VaultAuth(Protocol):
    """Where the token of each request comes from, and where its outcome is reported."""

    async def token(self) -> Secret:
        """Return the token to use now.

        Raises:
            KmsUnavailableError: there is none, or it was refused moments ago.
        """

    async def replace(self, refused: Secret) -> Secret | None:
        """Return another token than the one that was refused, or None if there is no other."""

    def accepted(self) -> None:
        """Note that a request was accepted: a refusal is over."""

    def refused(self, token: Secret, reason: str) -> KmsRefusedError:
        """Note that a token was refused for good, and return the error to raise."""


class CredentialReader(Protocol):
    """A token, or what a login needs; it may change."""

    def read(self) -> Secret:
        """Return the credential as it is now; raises KmsUnavailableError without one."""


class TokenAuth:
    """A token that another program renews or replaces."""

    def __init__(self, reader: CredentialReader, clock: Clock = time.monotonic) -> None:
        self._reader = reader
        self._refusals = Refusals(clock)

    async def token(self) -> Secret:
        """Return the token as it is in its setting or file now."""
        token = self._reader.read()
        if self._refusals.any:
            self._refusals.check(token)
        return token

    async def replace(self, refused: Secret) -> Secret | None:
        """Read it again: it may have been replaced meanwhile."""
        token = self._reader.read()
        return None if token == refused or self._refusals.blocks(token) else token

    def accepted(self) -> None:
        """End the backoff."""
        if self._refusals.any:
            self._refusals.clear()

    def refused(self, token: Secret, reason: str) -> KmsRefusedError:
        """Begin a backoff, unless the token was replaced meanwhile."""
        return self._refusals.add(token, reason)


@dataclass(frozen=True, slots=True)
class Login:
    """An auth method: where to log in, and with what.

    Attributes:
        path: Below `/v1/`.
        fields: What is sent beside the credential.
        credential_field: The name under which the credential is sent.
        reader: Reads the credential.
        refusal: What to say when the server refuses the login.
    """

    path: str
    fields: Mapping[str, str]
    credential_field: str
    reader: CredentialReader
    refusal: str


@dataclass(frozen=True, slots=True)
class _Lease:
    token: Secret
    credential: Secret
    renewable: bool
    length_s: float
    renew_at: float
    ends_at: float


class LoginAuth:
    """A token from a login. It is renewed by the first call after two thirds of its life."""

    def __init__(self, http: VaultHttp, login: Login, clock: Clock = time.monotonic) -> None:
        self._http = http
        self._login = login
        self._clock = clock
        self._refusals = Refusals(clock)
        self._lease: _Lease | None = None
        self._lock = asyncio.Lock()

    async def token(self) -> Secret:
        """Return the token; log in, or renew it, where that is due."""
        lease = self._current()
        if self._refusals.any:
            if self._lock.locked():
                raise self._refusals.error()
        elif lease is not None and (self._clock() < lease.renew_at or self._lock.locked()):
            return lease.token
        async with self._lock:
            credential = self._login.reader.read()
            # Again, after the wait: the holder of the lock may have been refused.
            if self._refusals.any:
                self._refusals.check(credential)
            lease = self._current()
            if lease is None:
                lease = await self._log_in_or_back_off(credential)
            elif self._clock() >= lease.renew_at:
                lease = await self._extend(lease, credential)
            self._lease = lease
            return lease.token

    async def replace(self, refused: Secret) -> Secret | None:
        """Log in again, unless another call has done so."""
        async with self._lock:
            lease = self._current()
            if lease is not None and lease.token != refused:
                return lease.token
            credential = self._login.reader.read()
            if self._refusals.blocks(credential):
                return None
            self._lease = None
            self._lease = await self._log_in_or_back_off(credential)
            return self._lease.token

    def accepted(self) -> None:
        """End the backoff."""
        if self._refusals.any:
            self._refusals.clear()

    def refused(self, token: Secret, reason: str) -> KmsRefusedError:
        """Begin a backoff, and try a new login after it."""
        lease = self._lease
        if lease is None or lease.token != token:
            return KmsRefusedError(reason)
        self._lease = None
        return self._refusals.add(lease.credential, reason)

    def _current(self) -> _Lease | None:
        lease = self._lease
        return lease if lease is not None and self._clock() < lease.ends_at else None

    async def _log_in_or_back_off(self, credential: Secret) -> _Lease:
        try:
            return await self._log_in(credential)
        except _LoginRefusedError as exc:
            raise self._refusals.add(credential, exc.detail) from None

    async def _extend(self, lease: _Lease, credential: Secret) -> _Lease:
        """Renew a token ahead of its end, or log in; until it ends, a failure is none."""
        try:
            return await self._renew(lease) or await self._log_in(credential)
        except KmsUnavailableError:
            now = self._clock()
            return _Lease(
                lease.token,
                lease.credential,
                lease.renewable,
                lease.length_s,
                now + (lease.ends_at - now) / 4,
                lease.ends_at,
            )

    async def _renew(self, lease: _Lease) -> _Lease | None:
        """Return None if the token cannot be renewed, or hardly: at its longest life."""
        if not lease.renewable:
            return None
        began = self._clock()
        response = await self._http.call(
            "POST", "auth/token/renew-self", token=lease.token, body={}
        )
        renewed = None if response.status != _OK else self._read(response, lease.credential, began)
        return renewed if renewed and renewed.length_s >= lease.length_s / 2 else None

    async def _log_in(self, credential: Secret) -> _Lease:
        began = self._clock()
        body = {
            **self._login.fields,
            self._login.credential_field: credential.reveal().decode("ascii"),
        }
        response = await self._http.call("POST", self._login.path, body=body)
        if response.status in _LOGIN_REFUSED:
            raise _LoginRefusedError(self._login.refusal)
        if response.status != _OK:
            raise response.failure()
        lease = self._read(response, credential, began)
        if lease is None:
            raise KmsUnavailableError("Vault's response to the login has no token")
        return lease

    @staticmethod
    def _read(response: VaultResponse, credential: Secret, began: float) -> _Lease | None:
        match response.section("auth"):
            case {
                "client_token": str(text),
                "lease_duration": int(length),
                "renewable": bool(renewable),
            }:
                # 0 means a token that does not end.
                length_s = float(length) if length > 0 else math.inf
            case _:
                return None
        try:
            token = Secret(header_value(text).encode())
        except ValueError:
            return None
        renew_at = began + length_s * _RENEWED_AFTER
        return _Lease(token, credential, renewable, length_s, renew_at, began + length_s)


class _LoginRefusedError(KmsRefusedError):
    """The server refused the credential itself."""
