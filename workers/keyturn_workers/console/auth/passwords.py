"""Checks passwords: slowly, a few at once, no faster for an unknown name (SPEC 16.3).

Attempts are limited for each name and in total. A name that is not in the file costs the same as
one that is: its password is compared with the hash of a random one.

Anyone who reaches the page can use up the total with made-up names, and must not keep others out.
So it limits only names that are not in the file: those of the file are few, and each has its own
limit. Nor do they wait for the comparisons of others. Which names these are must not show. Every
attempt counts toward the total, and a refusal waits for its turn among all. While the total is used
up, every refusal reads the same, and comes after the same time, whether or not a password was
compared.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, NamedTuple, Protocol

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from keyturn_workers.console.auth.password_file import PasswordFile, User, is_user_name

MAX_CHARACTERS: Final = 1024
MIN_CHARACTERS: Final = 12
ATTEMPTS_PER_NAME: Final = 5
"""At once; then one more every `ATTEMPTS_S / ATTEMPTS_PER_NAME` seconds."""
ATTEMPTS_IN_TOTAL: Final = 60
ATTEMPTS_S: Final = 60.0
REFUSAL_S: Final = 1.0
"""How long a refusal takes while the total is used up: longer than a comparison."""


class Hasher(Protocol):
    """What this module needs of `argon2.PasswordHasher`."""

    def hash(self, password: str, /) -> str:
        """The hash of a password."""
        ...

    def verify(self, expected: str, password: str, /) -> bool:
        """Whether a password has this hash; `VerificationError` if not."""
        ...


class TooManyAttemptsError(Exception):
    """There were too many attempts, of this name or in total, and this one does not sign in."""


def hash_password(password: str) -> str:
    """The argon2id hash of a password, with the parameters of RFC 9106 for little memory."""
    return PasswordHasher().hash(password)


class Attempts:
    """Counts attempts by name: some at once, then one more whenever one is `interval_s` old."""

    def __init__(self, at_once: int, period_s: float, clock: Callable[[], float]) -> None:
        self._interval_s = period_s / at_once
        self._at_once_s = period_s - self._interval_s
        self._clock = clock
        # When all attempts of a name will be forgotten; the name tried longest ago is first.
        self._forgotten_at: dict[str, float] = {}

    def __len__(self) -> int:
        """How many names are remembered."""
        return len(self._forgotten_at)

    def take(self, name: str = "") -> bool:
        """Count an attempt; False if there were too many, which does not count."""
        now = self._clock()
        while self._forgotten_at and next(iter(self._forgotten_at.values())) <= now:
            del self._forgotten_at[next(iter(self._forgotten_at))]
        forgotten_at = max(self._forgotten_at.get(name, now), now)
        if forgotten_at > now + self._at_once_s:
            return False
        self._forgotten_at.pop(name, None)
        self._forgotten_at[name] = forgotten_at + self._interval_s
        return True


class Passwords:
    """Checks names and passwords against a file."""

    def __init__(
        self,
        file: PasswordFile,
        hasher: Hasher | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file
        self._hasher = hasher or PasswordHasher()
        self._unknown = self._hasher.hash(secrets.token_urlsafe())
        # One comparison at once for names of the file, and one for others: each takes 64 MiB.
        self._known = asyncio.Lock()
        self._turns = asyncio.Lock()
        self._names = Attempts(ATTEMPTS_PER_NAME, ATTEMPTS_S, clock)
        self._total = Attempts(ATTEMPTS_IN_TOTAL, ATTEMPTS_S, clock)

    @property
    def names_remembered(self) -> int:
        """How many names are counted now."""
        return len(self._names)

    async def check(self, name: str, password: str) -> User | None:
        """The user with this name and password.

        Raises:
            TooManyAttemptsError: too many attempts of this name; or in total, and it is not right.
        """
        # All that cannot be in the file is counted as one, so that no long text is remembered.
        if not self._names.take(name if is_user_name(name) else ""):
            raise TooManyAttemptsError
        is_within_total = self._total.take()
        user = self._file.user(name)
        if user is None:
            made_up = partial(self._compare, self._unknown, password)
            await self._take_turn(made_up, is_within_total=is_within_total)
        else:
            own = asyncio.create_task(self._compare_known(user, password))
            turn = self._take_turn(partial(asyncio.shield, own), is_within_total=is_within_total)
            refusing = asyncio.create_task(turn)
            if (await own).is_right:
                refusing.cancel()
                return user
            await refusing
        if not is_within_total:
            raise TooManyAttemptsError
        return None

    async def _take_turn(
        self, compare: Callable[[], Awaitable["_Comparison"]], *, is_within_total: bool
    ) -> None:
        """Take as long as an attempt with a made-up name does: a wait for others, and a comparison.

        That of a name of the file may have ended before its turn.
        """
        async with self._turns:
            began = time.monotonic()
            if is_within_total:
                took_s = (await compare()).took_s
                await asyncio.sleep(began + took_s - time.monotonic())
        if not is_within_total:
            await asyncio.sleep(began + REFUSAL_S - time.monotonic())

    async def _compare_known(self, user: User, password: str) -> "_Comparison":
        async with self._known:
            return await self._compare(user.hash, password)

    async def _compare(self, expected: str, password: str) -> "_Comparison":
        began = time.monotonic()
        is_right = await asyncio.to_thread(self._verify, expected, password)
        return _Comparison(is_right, time.monotonic() - began)

    def _verify(self, expected: str, password: str) -> bool:
        try:
            return self._hasher.verify(expected, password[:MAX_CHARACTERS])
        except (VerificationError, InvalidHashError):
            return False


class _Comparison(NamedTuple):
    """A password compared with a hash, and how long it took."""

    is_right: bool
    took_s: float
