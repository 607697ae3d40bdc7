"""Signed tokens of forms, so that each form is served once (SPEC 16.3).

A page that offers an action is made without any state: what its form is about, and the id of the
request that it would publish, are in a token of the form. A token is of one session and one
purpose, and its key is of this process: a form from before a restart publishes nothing.
"""

import secrets
from dataclasses import dataclass
from typing import Final

from itsdangerous import BadData, URLSafeTimedSerializer

from keyturn.publisher.requests import new_id
from keyturn_workers.console.signers import StrictTimestampSigner

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
