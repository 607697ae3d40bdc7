"""Sessions: one signed cookie each, which names the person and when the session began (SPEC 16.3).

A cookie is signed, so the console keeps nothing and survives a restart. It is refused

    after `CONSOLE_SESSION_S`, or `CONSOLE_IDLE_S` without an action,
    once it was signed out (`SignedOut`),
    once its account changed: removed, another password, another role, other settings of the
    provider (its `stamp`),
    once the key changed that signs it.

Each sign-in makes a new id, so an id that somebody planted before gains nothing.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from itsdangerous import BadData, URLSafeSerializer

from keyturn.crypto import Secret
from keyturn_workers.console.auth.person import Person, Role, Session
from keyturn_workers.console.auth.signed_out import SignedOut
from keyturn_workers.console.signers import StrictSigner

COOKIE: Final = "__Host-keyturn-console"
_ID_BYTES: Final = 16
_SALT: Final = b"keyturn/console/session/v1"
# A cookie is written again once this part of the idle time is over.
_RENEW_PART: Final = 0.1
Kind = Literal["password", "oidc"]


@dataclass(frozen=True, slots=True)
class Account:
    """How a person is known: by the password file or by the provider.

    Attributes:
        id: The name in the file, or the provider's subject.
        name: What is shown and recorded.
        stamp: Changes with whatever must end the account's sessions.
    """

    kind: Kind
    id: str
    name: str
    role: Role
    stamp: str

    @property
    def person(self) -> Person:
        """The person of a session of this account."""
        return Person(self.name, self.role, f"{self.kind}:{self.id}")


@dataclass(frozen=True, slots=True)
class _Cookie:
    secret_id: str
    account: Account
    began_at: float
    seen_at: float


class Sessions:
    """Makes, reads and ends sessions."""

    def __init__(
        self,
        key: Secret,
        stamp_of: Callable[[Kind, str, Role], str | None],
        signed_out: SignedOut,
        *,
        session_s: float,
        idle_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take what decides about a session.

        Args:
            key: Signs cookies.
            stamp_of: The stamp of an account now; None once it is gone.
            signed_out: What was signed out.
            session_s: How long a session lasts at most.
            idle_s: How long it lasts without an action.
            clock: Seconds since 1970.
        """
        self._key = key
        self._cookies = URLSafeSerializer(
            key.reveal(),
            salt=_SALT,
            signer=StrictSigner,
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )
        self._stamp_of = stamp_of
        self._signed_out = signed_out
        self._session_s = session_s
        self._idle_s = idle_s
        self._clock = clock

    def begin(self, account: Account) -> str:
        """The cookie of a new session."""
        now = self._clock()
        return self._write(_Cookie(secrets.token_urlsafe(_ID_BYTES), account, now, now))

    def read(self, cookie: str | None) -> Session | None:
        """The session of a cookie, if it is still valid."""
        found = self._parse(cookie)
        return None if found is None or not self._is_valid(found) else self._session(found)

    def renew(self, cookie: str) -> str | None:
        """The cookie after an action; None while the old one does."""
        found = self._parse(cookie)
        now = self._clock()
        if found is None or now - found.seen_at < self._idle_s * _RENEW_PART:
            return None
        return self._write(_Cookie(found.secret_id, found.account, found.began_at, now))

    def end(self, session: Session) -> None:
        """Sign a session out: no copy of its cookie is accepted any more."""
        self._signed_out.add(session.id, session.ends_at)

    def _is_valid(self, cookie: _Cookie) -> bool:
        now, account = self._clock(), cookie.account
        return (
            now < cookie.began_at + self._session_s
            and now < cookie.seen_at + self._idle_s
            and _public_id(cookie.secret_id) not in self._signed_out
            and self._stamp_of(account.kind, account.id, account.role) == account.stamp
        )

    def _session(self, cookie: _Cookie) -> Session:
        csrf = hmac.digest(self._key.reveal(), f"csrf {cookie.secret_id}".encode(), "sha256")
        return Session(
            _public_id(cookie.secret_id),
            cookie.account.person,
            csrf.hex(),
            cookie.began_at + self._session_s,
        )

    def _write(self, cookie: _Cookie) -> str:
        account = cookie.account
        fields = [
            cookie.secret_id,
            account.kind,
            account.id,
            account.name,
            account.role,
            account.stamp,
            int(cookie.began_at),
            int(cookie.seen_at),
        ]
        written = self._cookies.dumps(fields)
        return written if isinstance(written, str) else written.decode()

    def _parse(self, cookie: str | None) -> _Cookie | None:
        if not cookie:
            return None
        try:
            fields: list[Any] = self._cookies.loads(cookie)
            secret_id, kind, account, name, role, stamp, began_at, seen_at = fields
        except (BadData, ValueError):
            return None
        return _Cookie(secret_id, Account(kind, account, name, role, stamp), began_at, seen_at)


def stamp(*parts: str) -> str:
    """A digest of what must end an account's sessions when it changes."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _public_id(secret_id: str) -> str:
    return hashlib.sha256(secret_id.encode()).hexdigest()[:32]
