"""Signed form tokens, by which each form is served once, and fresh API keys.

A page that offers an action keeps no state: a token in the form carries its subject and the id of
the request that it would publish. A token belongs to one session and one purpose, and its key to
this process: a form from before a restart publishes nothing (SPEC 16.3).

A fresh API key is made for one session and one project, and shown only in the response that made
it. A person who loses it makes another: an unpublished key opens nothing. It is held in memory for
at most `KEY_LIFE_S` (SPEC 8.1, 14).
"""

import asyncio
import secrets
from dataclasses import dataclass
from typing import Final

from itsdangerous import BadData, URLSafeTimedSerializer
from pydantic import SecretStr

from keyturn.crypto.keys import new_api_key
from keyturn.publisher.requests import new_id
from keyturn_workers.console.auth.sessions import StrictTimestampSigner

FORM_LIFE_S: Final = 3600
_SECRET_BYTES: Final = 32


class FormExpiredError(Exception):
    """The form has expired, or belongs to another session or a process before a restart."""


@dataclass(frozen=True, slots=True)
class FormToken:
    """The content of a form's token.

    Attributes:
        request_id: The id of the request that the form publishes.
        subject: The target of the request, such as a project; never a secret.
    """

    request_id: str
    subject: tuple[str, ...]


class FormTokens:
    """Makes and reads the tokens of one process."""

    def __init__(self) -> None:
        self._serializer = URLSafeTimedSerializer(
            secrets.token_bytes(_SECRET_BYTES),
            salt="keyturn-console-form",
            signer=StrictTimestampSigner,
        )

    def make(
        self, session_id: str, purpose: str, *subject: str, request_id: str | None = None
    ) -> str:
        """Return a token for a new form; by default with the id of a new request."""
        return str(
            self._serializer.dumps([session_id, purpose, request_id or new_id(), list(subject)])
        )

    def read(
        self, token: str, session_id: str, purpose: str, *, life_s: int = FORM_LIFE_S
    ) -> FormToken:
        """Return the content of a form's token.

        Raises:
            FormExpiredError: it is not a token of this session for this purpose, or too old.
        """
        try:
            of_session, of_purpose, request_id, subject = self._serializer.loads(
                token, max_age=life_s
            )
        except (BadData, ValueError) as exc:
            raise FormExpiredError from exc
        if (of_session, of_purpose) != (session_id, purpose):
            raise FormExpiredError
        return FormToken(request_id, tuple(subject))


KEY_LIFE_S: Final = 600
MAX_HELD: Final = 100


@dataclass(frozen=True, slots=True)
class FreshKey:
    """A key made for an enrollment or a rotation that is not confirmed yet.

    `request_id` is the id of the request to publish; `expected_generation` is the generation that
    the person saw, which the rotation replaces; None of an enrollment.
    """

    request_id: str
    session_id: str
    project: str
    expected_generation: int | None
    api_key: SecretStr


class FreshKeys:
    """The keys held, newest last, each for `life_s`. Used from one event loop.

    Beyond `max_held` the oldest is dropped.
    """

    def __init__(self, *, life_s: float = KEY_LIFE_S, max_held: int = MAX_HELD) -> None:
        self._life_s = life_s
        self._max_held = max_held
        self._held: dict[str, FreshKey] = {}

    def make(self, session_id: str, project: str, expected_generation: int | None) -> FreshKey:
        """Make a key. An earlier one of the same session and project is dropped.

        So a page that was loaded twice can only publish the key that it showed last, the one that
        the person can have saved.
        """
        for other in tuple(self._held.values()):
            if (other.session_id, other.project) == (session_id, project):
                self.drop(other.request_id)
        while len(self._held) >= self._max_held:
            self.drop(next(iter(self._held)))
        fresh = FreshKey(
            new_id(), session_id, project, expected_generation, SecretStr(new_api_key())
        )
        self._held[fresh.request_id] = fresh
        asyncio.get_running_loop().call_later(self._life_s, self.drop, fresh.request_id)
        return fresh

    def find(self, request_id: str, session_id: str) -> FreshKey | None:
        """Return a key that is still held for this session."""
        fresh = self._held.get(request_id)
        return fresh if fresh is not None and fresh.session_id == session_id else None

    def drop(self, request_id: str) -> None:
        """Discard a key."""
        self._held.pop(request_id, None)
