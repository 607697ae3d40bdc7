"""What a form leads to: signed tokens, so that each form is served once, and fresh API keys.

A page that offers an action is made without any state: what its form is about, and the id of the
request that it would publish, are in a token of the form. A token is of one session and one
purpose, and its key is of this process: a form from before a restart publishes nothing (SPEC 16.3).

A fresh API key is made for one session and one project, and shown in the response that made it. It
is never shown again: a person who loses it makes another one, since a key that was not published
opens nothing. It is held in memory, for `KEY_LIFE_S` at most (SPEC 8.1, 14).
"""

import asyncio
import secrets
from dataclasses import dataclass
from typing import Final

from itsdangerous import BadData, URLSafeTimedSerializer
from pydantic import SecretStr

from keyturn.crypto import new_api_key
from keyturn.publisher.requests import new_id
from keyturn_workers.console.auth.sessions import StrictTimestampSigner

FORM_LIFE_S: Final = 3600
_SECRET_BYTES: Final = 32


class FormExpiredError(Exception):
    """The form is older than its life, of another session, or from before a restart."""


@dataclass(frozen=True, slots=True)
class FormToken:
    """What a form says.

    Attributes:
        request_id: The id of the request that the form publishes.
        subject: What it is about, such as a project; never a secret.
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
        """A token for a new form; by default with the id of a new request."""
        return str(
            self._serializer.dumps([session_id, purpose, request_id or new_id(), list(subject)])
        )

    def read(
        self, token: str, session_id: str, purpose: str, *, life_s: int = FORM_LIFE_S
    ) -> FormToken:
        """What the token of a form says.

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
    """A key that was made for a rotation that is not confirmed yet.

    Attributes:
        rotation_id: The id under which the rotation would be published.
        expected_generation: The generation that the person saw, which it replaces.
    """

    rotation_id: str
    session_id: str
    project: str
    expected_generation: int
    api_key: SecretStr


class FreshKeys:
    """The keys that are held, newest last. Used from one event loop.

    Args:
        life_s: Seconds after which a key is dropped.
        max_held: How many are held; beyond that the oldest is dropped.
    """

    def __init__(self, *, life_s: float = KEY_LIFE_S, max_held: int = MAX_HELD) -> None:
        self._life_s = life_s
        self._max_held = max_held
        self._held: dict[str, FreshKey] = {}

    def make(self, session_id: str, project: str, expected_generation: int) -> FreshKey:
        """A fresh key. An earlier one of the same session and project is dropped.

        So a page that was loaded twice cannot publish another key than the one that it showed
        last, which is the one that the person can have saved.
        """
        for other in tuple(self._held.values()):
            if (other.session_id, other.project) == (session_id, project):
                self.drop(other.rotation_id)
        while len(self._held) >= self._max_held:
            self.drop(next(iter(self._held)))
        fresh = FreshKey(
            new_id(), session_id, project, expected_generation, SecretStr(new_api_key())
        )
        self._held[fresh.rotation_id] = fresh
        asyncio.get_running_loop().call_later(self._life_s, self.drop, fresh.rotation_id)
        return fresh

    def find(self, rotation_id: str, session_id: str) -> FreshKey | None:
        """A key that is still held for this session."""
        fresh = self._held.get(rotation_id)
        return fresh if fresh is not None and fresh.session_id == session_id else None

    def drop(self, rotation_id: str) -> None:
        """Hold a key no longer."""
        self._held.pop(rotation_id, None)
