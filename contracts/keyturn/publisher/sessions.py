"""A publisher's sealing session: transport keys are sealed under its secret (SPEC 3.2, 6.4).

The secret is sealed to the workers once, with HPKE, and travels with each upload.
It must never seal anything but transport keys of uploads, and never be logged or stored.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from keyturn.crypto.base64 import to_base64
from keyturn.crypto.cobblestone import seal
from keyturn.crypto.intake import session_info
from keyturn.crypto.keys import Secret
from keyturn.messages.requests import SealedKey
from keyturn.settings import PublisherSettings

SESSION_MAX_AGE_S: Final = 600.0
SESSION_MAX_MESSAGES: Final = 2**16
_SECRET_BYTES: Final = 32


def _boottime_s() -> float:
    """Return seconds of a clock that continues while the machine sleeps, if there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


@dataclass(slots=True)
class _Session:
    secret: Secret
    sealed: str
    until_s: float
    left: int


class SealingSession:
    """Seals for the workers of one deployment, as one publisher, to one intake key.

    Args:
        settings: the publisher's.
        max_messages: the number of seals after which the session is renewed.
        max_age_s: the same in seconds.
        now_s: a clock that never goes back.
    """

    def __init__(
        self,
        settings: PublisherSettings,
        *,
        max_messages: int = SESSION_MAX_MESSAGES,
        max_age_s: float = SESSION_MAX_AGE_S,
        now_s: Callable[[], float] = _boottime_s,
    ) -> None:
        self._intake = settings.intake_public_key
        self._info = session_info(settings.deployment, settings.publisher_name)
        self._max_messages = max_messages
        self._max_age_s = max_age_s
        self._now_s = now_s
        self._session: _Session | None = None

    def seal(self, transport_key: Secret, info: bytes) -> SealedKey:
        """Return the transport key of the upload that `info` names, sealed under the session."""
        session = self._session
        if session is None or session.left < 1 or self._now_s() >= session.until_s:
            self._session = session = self._new()
        session.left -= 1
        ciphertext = to_base64(seal(session.secret.reveal(), info, transport_key.reveal()))
        # Not checked: to check base64 is to decode it, and this was encoded here.
        return SealedKey.model_construct(
            intake_key=self._intake.id, session=session.sealed, ciphertext=ciphertext
        )

    def _new(self) -> _Session:
        secret = Secret(os.urandom(_SECRET_BYTES))
        sealed = to_base64(self._intake.key.seal(secret.reveal(), self._info))
        return _Session(secret, sealed, self._now_s() + self._max_age_s, self._max_messages)
