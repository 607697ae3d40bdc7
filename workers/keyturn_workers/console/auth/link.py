"""The one-time link: sign-in on this machine while no one has an account (SPEC 16.3).

Its token is in the query, which no log line has, and the response leads to an address without it.
Other users of the machine reach the port, but do not see the terminal that the link was printed on.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from typing import Final

from keyturn_workers.console.auth.sessions import Account, stamp

LINK_S: Final = 3600.0
ACTOR: Final = "one-time link"
"""The name in requests and audit records. A user's name has no spaces, and a name from the provider
ends with its subject in parentheses."""
TOKEN: Final = "token"  # noqa: S105  # the name of a query parameter
_TOKEN_BYTES: Final = 32


class SignInLink:
    """The token of one process: it signs in once. Its sessions end with the process."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._digest = b""
        self._ends_at = 0.0
        self.account: Final = Account(
            "link", "", ACTOR, "operate", stamp(secrets.token_urlsafe(_TOKEN_BYTES))
        )

    def new_token(self) -> str:
        """Return a new token, the only valid one. It is not kept, only its digest."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._digest, self._ends_at = _digest(token), self._clock() + LINK_S
        return token

    def redeem(self, token: str) -> bool:
        """Return whether a token is valid, and use it up."""
        # Without an await in between, so that of two requests only one succeeds.
        is_right = hmac.compare_digest(_digest(token), self._digest)
        if not is_right or self._clock() >= self._ends_at:
            return False
        self._digest = b""
        return True


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
