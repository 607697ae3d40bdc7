"""The MAC on a worker's note about a retry: no publisher can make one (SPEC 6.3).

Its key is derived from the seed of an event key, which only workers have. The MAC binds the note to
one deployment, queue, publisher and body: on another publisher's identical bytes, or in another
queue, it does not verify.
"""

import hmac
from dataclasses import dataclass

from keyturn.crypto.base64 import from_base64, to_base64
from keyturn.crypto.keys import Secret
from keyturn.crypto.labels import label
from keyturn.errors import SignatureError


@dataclass(frozen=True, slots=True)
class RetryNote:
    """A worker's note on a message that waits for its next attempt.

    Attributes:
        queue: The queue that the message returns to.
        publisher: The publisher that signed the request; empty for the workers' own messages.
        request: SHA-256 of the body, 64 hex digits.
        attempt: The number of attempts in a row that failed with `code`.
        code: The code of SPEC 12.
        not_before: The time (SPEC 1) before which the message is not served.
    """

    queue: str
    publisher: str
    request: str
    attempt: int
    code: str
    not_before: str


class RetryKey:
    """The HMAC key of the notes. Made by `SigningKey.retry_key`."""

    def __init__(self, key: Secret) -> None:
        self._key = key

    def mac(self, deployment: str, note: RetryNote) -> str:
        """Return the header `keyturn-retry-mac`, in base64.

        Raises:
            ValueError: a part of the note has a zero byte.
        """
        return to_base64(self._digest(deployment, note))

    def verify(self, deployment: str, note: RetryNote, mac_b64: str) -> None:
        """Verify in constant time that a holder of this key made the note.

        Raises:
            SignatureError: no holder did, or the MAC is not base64.
        """
        try:
            given, expected = from_base64(mac_b64), self._digest(deployment, note)
        except ValueError as exc:
            raise SignatureError from exc
        if not hmac.compare_digest(given, expected):
            raise SignatureError

    def _digest(self, deployment: str, note: RetryNote) -> bytes:
        message = label(
            "keyturn/v1/retry",
            deployment,
            note.queue,
            note.publisher,
            note.request,
            str(note.attempt),
            note.code,
            note.not_before,
        )
        return hmac.digest(self._key.reveal(), message, "sha256")
