"""Sessions: signed cookies, and signers that read a signature strictly (SPEC, conventions).

itsdangerous decodes a signature before it compares it, and ignores stray bits and foreign
characters. These signers compare the texts, so a token has exactly one spelling.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import structlog
from itsdangerous import BadData, Signer, TimestampSigner, URLSafeSerializer, want_bytes

from keyturn.crypto.keys import Secret
from keyturn.errors import SettingsError
from keyturn_workers.console.auth.person import Person, Role, Session


class StrictSigner(Signer):
    """A signer whose signatures have one spelling."""

    def verify_signature(self, value: str | bytes, sig: str | bytes) -> bool:
        """Return whether `sig` is the text that this signer writes for `value`."""
        return hmac.compare_digest(self.get_signature(value), want_bytes(sig))


class StrictTimestampSigner(StrictSigner, TimestampSigner):
    """The same, with a time in the signed text."""


_log = structlog.get_logger()


class SignedOut:
    """Ids of signed-out sessions, each until the session's end."""

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        """Read the file, and rewrite it without the ended sessions.

        Raises:
            SettingsError: it cannot be read or written.
        """
        self._path = path
        self._clock = clock
        self._ends: dict[str, float] = {}
        if path is None:
            return
        try:
            path.touch(mode=0o600)
            self._ends = dict(_parse(path.read_text(encoding="utf-8")))
            self._purge()
            path.write_text("".join(map(_line, self._ends.items())), encoding="utf-8")
        except (OSError, ValueError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "its content is malformed"
            raise SettingsError(
                f"KEYTURN_CONSOLE_SIGNED_OUT_FILE cannot be used ({reason})"
            ) from exc

    def __contains__(self, session: object) -> bool:
        """Return whether a session was signed out."""
        return session in self._ends

    def add(self, session: str, ends_at: float) -> None:
        """Sign a session out."""
        self._purge()
        self._ends[session] = ends_at
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line((session, ends_at)))
        except OSError as exc:
            # This process still remembers it.
            _log.error("sign-out not recorded in the file", error=type(exc).__name__)

    def _purge(self) -> None:
        now = self._clock()
        self._ends = {session: end for session, end in self._ends.items() if end > now}


def _line(entry: tuple[str, float]) -> str:
    session, ends_at = entry
    return f"{session} {ends_at:.0f}\n"


def _parse(text: str) -> list[tuple[str, float]]:
    entries = []
    for line in text.splitlines():
        session, _, ends_at = line.partition(" ")
        entries.append((session, float(ends_at)))
    return entries


COOKIE: Final = "__Host-keyturn-console"
_ID_BYTES: Final = 16
_SALT: Final = b"keyturn/console/session/v1"
# A cookie is written again once this part of the idle time is over.
_RENEW_PART: Final = 0.1
Kind = Literal["password", "oidc", "link"]


@dataclass(frozen=True, slots=True)
class Account:
    """A person's identity, by the password file, the provider or the one-time link.

    Attributes:
        id: The name in the file, or the provider's subject; empty for the link.
        name: The displayed and recorded name.
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
        """Configure the sessions.

        `key` signs cookies. `stamp_of` returns the current stamp of an account; None once it is
        gone. A session lasts at most `session_s`, and `idle_s` without an action.
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
        """Return the cookie of a new session."""
        now = self._clock()
        return self._write(_Cookie(secrets.token_urlsafe(_ID_BYTES), account, now, now))

    def read(self, cookie: str | None) -> Session | None:
        """Return the session of a cookie, if it is still valid."""
        found = self._parse(cookie)
        return None if found is None or not self._is_valid(found) else self._session(found)

    def renew(self, cookie: str) -> str | None:
        """Return the cookie after an action; None while the old one suffices."""
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
    """Return a digest of values whose change must end an account's sessions."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _public_id(secret_id: str) -> str:
    return hashlib.sha256(secret_id.encode()).hexdigest()[:32]
