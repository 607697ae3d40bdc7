"""After a refused credential, ask the provider again only now and then (SPEC 2.2).

A wrong credential does not become right by being repeated: it fills the provider's audit log, costs
its rate limit, and with a PIN it locks the token.
"""

import time
from collections.abc import Callable
from typing import Final

from keyturn.errors import KmsUnavailableError

_FIRST_S: Final = 1.0
_MAX_S: Final = 60.0


class RefusalBackoff:
    """Admits calls to a provider; after a refusal one at a time, after 1, 2, 4 … 60 seconds.

    Args:
        clock: Seconds that only increase.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refusals = 0
        self._error = KmsUnavailableError()
        self._next_at = 0.0

    def admit(self) -> int:
        """Admit a call, and return a number to report its refusal with.

        Raises:
            KmsUnavailableError: the provider refused a call, and its delay is not over.
        """
        if self._refusals:
            now = self._clock()
            if now < self._next_at:
                raise type(self._error)(
                    f"{self._error.detail}; next attempt in {self._next_at - now:.0f} s"
                )
            # This one is the attempt: the others fail until it is known how it ended.
            self._next_at = now + self._delay_s()
        return self._refusals

    def refused(self, admitted: int, error: KmsUnavailableError) -> None:
        """Report a refusal: the error of all calls until the next attempt.

        Of calls that were sent together, only the first one counts.
        """
        if admitted != self._refusals:
            return
        self._refusals += 1
        self._error = error
        self._next_at = self._clock() + self._delay_s()

    def accepted(self) -> None:
        """Report that the provider accepted the credential."""
        self._refusals = 0

    def _delay_s(self) -> float:
        return float(min(_FIRST_S * 2 ** min(self._refusals - 1, 16), _MAX_S))
