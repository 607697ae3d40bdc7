"""Checks passwords: slowly, a few at once, no faster for an unknown name (SPEC 16.3).

Attempts are limited for each name and in total. A name that is not in the file costs the same as
one that is: its password is compared with the hash of a random one.
"""

import asyncio
import secrets
from collections import OrderedDict
from typing import Final, Protocol

from aiolimiter import AsyncLimiter
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from keyturn_workers.console.auth.password_file import PasswordFile, User, is_user_name

MAX_CHARACTERS: Final = 1024
MIN_CHARACTERS: Final = 12
ATTEMPTS_PER_NAME: Final = 5
"""At once; then one more every `ATTEMPTS_S / ATTEMPTS_PER_NAME` seconds."""
ATTEMPTS_IN_TOTAL: Final = 60
ATTEMPTS_S: Final = 60.0
_NAMES_REMEMBERED: Final = 4096
# Each takes 64 MiB.
_AT_ONCE: Final = 2


class Hasher(Protocol):
    """What this module needs of `argon2.PasswordHasher`."""

    def hash(self, password: str, /) -> str:
        """The hash of a password."""
        ...

    def verify(self, expected: str, password: str, /) -> bool:
        """Whether a password has this hash; `VerificationError` if not."""
        ...


class TooManyAttemptsError(Exception):
    """The password was not looked at: this name, or all together, had too many attempts."""


def hash_password(password: str) -> str:
    """The argon2id hash of a password, with the parameters of RFC 9106 for little memory."""
    return PasswordHasher().hash(password)


class Passwords:
    """Checks names and passwords against a file."""

    def __init__(self, file: PasswordFile, hasher: Hasher | None = None) -> None:
        self._file = file
        self._hasher = hasher or PasswordHasher()
        self._unknown = self._hasher.hash(secrets.token_urlsafe())
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._total = AsyncLimiter(ATTEMPTS_IN_TOTAL, ATTEMPTS_S)
        self._names: OrderedDict[str, AsyncLimiter] = OrderedDict()

    @property
    def names_remembered(self) -> int:
        """How many names are counted now."""
        return len(self._names)

    async def check(self, name: str, password: str) -> User | None:
        """The user with this name and password.

        Raises:
            TooManyAttemptsError: it was not looked at.
        """
        await self._count(name)
        user = self._file.user(name)
        expected = self._unknown if user is None else user.hash
        async with self._at_once:
            is_right = await asyncio.to_thread(self._verify, expected, password)
        return user if is_right else None

    def _verify(self, expected: str, password: str) -> bool:
        try:
            return self._hasher.verify(expected, password[:MAX_CHARACTERS])
        except (VerificationError, InvalidHashError):
            return False

    async def _count(self, name: str) -> None:
        # First: what is refused here must not push out a name that is counted.
        if not self._total.has_capacity():
            raise TooManyAttemptsError
        # All that cannot be in the file is counted as one, so that no long text is remembered.
        counted = name if is_user_name(name) else ""
        limiter = self._names.pop(counted, None) or AsyncLimiter(ATTEMPTS_PER_NAME, ATTEMPTS_S)
        # The newest at the end: what is forgotten is the name that was tried longest ago.
        self._names[counted] = limiter
        if len(self._names) > _NAMES_REMEMBERED:
            self._names.popitem(last=False)
        if not limiter.has_capacity():
            raise TooManyAttemptsError
        await limiter.acquire()
        await self._total.acquire()
