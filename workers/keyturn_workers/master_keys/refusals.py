"""Credentials that a provider refused are not tried again and again (SPEC 2.2)."""

import time
from collections.abc import Callable

from keyturn.crypto import Secret
from keyturn_workers.master_keys.backoff import RefusalBackoff
from keyturn_workers.master_keys.port import KmsRefusedError

Clock = Callable[[], float]


class Refusals:
    """The credential that was refused last. Until it changes, a backoff bounds its use."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._backoff = RefusalBackoff(clock)
        self._credential: Secret | None = None
        self._admitted = 0
        self._reason = ""

    @property
    def any(self) -> bool:
        """Whether something was refused, and nothing accepted since."""
        return self._credential is not None

    def add(self, credential: Secret, reason: str) -> KmsRefusedError:
        """Note that a credential was refused, and return the error to raise."""
        if self._credential != credential:
            self.clear()
            self._credential = credential
        # Of calls that were sent together, only the first one counts.
        self._backoff.refused(self._admitted, KmsRefusedError(reason))
        self._reason = reason
        return self.error()

    def error(self) -> KmsRefusedError:
        """The error of the last refusal."""
        return KmsRefusedError(self._reason)

    def blocks(self, credential: Secret) -> bool:
        """Whether this credential is the one that was refused."""
        return self._credential == credential

    def check(self, credential: Secret) -> None:
        """Let one call pass after each delay, and any call with another credential.

        Raises:
            KmsRefusedError: the delay is not over, or another call tries the credential.
        """
        if self._credential == credential:
            self._admitted = self._backoff.admit()
        else:
            self.clear()

    def clear(self) -> None:
        """Forget the refusal."""
        self._backoff = RefusalBackoff(self._clock)
        self._credential = None
        self._admitted = 0
