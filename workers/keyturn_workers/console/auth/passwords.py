"""The password file, for sign-in without a provider (SPEC 16.3).

One line each, `name:role:hash`, written by `keyturn console add-user`. The hash is argon2id's in
the PHC format. The file is read again when it changes, so a removed person is signed out within a
second; an unreadable file changes nothing.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol, cast

import structlog
from argon2 import PasswordHasher, Type, extract_parameters
from argon2.exceptions import InvalidHashError, VerificationError

from keyturn.errors import SettingsError
from keyturn.tls import FileState, file_state
from keyturn_workers.console.auth.person import Role

MAX_USERS: Final = 1000
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_ROLES: Final = ("view", "operate")
_CHECK_S: Final = 1.0
# A larger hash would exhaust the console's memory or time at each attempt to sign in.
_MAX_MEMORY_KIB: Final = 1024 * 1024
_MAX_TIME_COST: Final = 100

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class User:
    """One line of the file."""

    name: str
    role: Role
    hash: str


def is_user_name(name: str) -> bool:
    """Return whether a name can be in the file."""
    return _NAME.fullmatch(name) is not None


def parse_users(text: str) -> dict[str, User]:
    """Return the users in a file's text.

    Raises:
        ValueError: a line is malformed; the error does not repeat it.
    """
    users: dict[str, User] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.strip().partition(":")
        role, _, digest = rest.partition(":")
        if not is_user_name(name) or role not in _ROLES or not _is_argon2id(digest):
            raise ValueError(f"line {number} is not of the form name:view|operate:hash")
        if name in users:
            raise ValueError(f"line {number} repeats the name of an earlier user")
        users[name] = User(name, cast("Role", role), digest)
    if len(users) > MAX_USERS:
        raise ValueError(f"more than {MAX_USERS} users")
    return users


def format_users(users: Mapping[str, User]) -> str:
    """Return the text of a file with these users."""
    header = "# The console's users: name:role:hash. Change it with `keyturn console add-user`.\n"
    return header + "".join(f"{user.name}:{user.role}:{user.hash}\n" for user in users.values())


def _is_argon2id(digest: str) -> bool:
    try:
        parameters = extract_parameters(digest)
    except InvalidHashError:
        return False
    return (
        parameters.type is Type.ID
        and parameters.memory_cost <= _MAX_MEMORY_KIB
        and parameters.time_cost <= _MAX_TIME_COST
    )


class PasswordFile:
    """The users of a file, as last read."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file.

        Raises:
            SettingsError: it cannot be read, or is malformed.
        """
        self._path = path
        self._clock = clock
        self._checked_at = clock()
        self._state: FileState | None = None
        try:
            self._users = self._read()
        except (OSError, ValueError) as exc:
            raise SettingsError(f"KEYTURN_CONSOLE_PASSWORD_FILE: {_reason(exc)}") from exc

    def user(self, name: str) -> User | None:
        """Return a user of the file as it is now, or was up to a second ago."""
        return self._current().get(name)

    def has_users(self) -> bool:
        """Return whether the file has any user."""
        return bool(self._current())

    def _current(self) -> Mapping[str, User]:
        if self._clock() - self._checked_at >= _CHECK_S:
            self._checked_at = self._clock()
            self._read_again()
        return self._users

    def _read(self) -> dict[str, User]:
        # Before the content: a write in between counts as one more change.
        self._state = file_state(self._path)
        return parse_users(self._path.read_text(encoding="utf-8"))

    def _read_again(self) -> None:
        try:
            if self._state is not None and file_state(self._path) == self._state:
                return
            self._users = self._read()
        except (OSError, ValueError) as exc:
            self._state = None
            _log.error(
                "password file not read: its last valid content stays in effect",
                reason=_reason(exc),
            )
        else:
            _log.info("password file read", users=len(self._users))


def _reason(exc: OSError | ValueError) -> str:
    if isinstance(exc, OSError):
        return f"the file cannot be read ({exc.strerror or type(exc).__name__})"
    return "it is not UTF-8" if isinstance(exc, UnicodeError) else str(exc)


MAX_CHARACTERS: Final = 1024
MIN_CHARACTERS: Final = 12
ATTEMPTS_PER_NAME: Final = 5
"""So many at once; then one more every `ATTEMPTS_S / ATTEMPTS_PER_NAME` seconds."""
ATTEMPTS_IN_TOTAL: Final = 60
ATTEMPTS_S: Final = 60.0
REFUSAL_S: Final = 1.0
"""The time of a refusal while the total is used up: longer than a comparison."""


class Hasher(Protocol):
    """The part of `argon2.PasswordHasher` that this module needs."""

    def hash(self, password: str, /) -> str:
        """Return the hash of a password."""
        ...

    def verify(self, expected: str, password: str, /) -> bool:
        """Return True if a password has this hash; raise `VerificationError` if not."""
        ...


class TooManyAttemptsError(Exception):
    """Too many attempts, of this name or in total, and this one does not sign in."""


def hash_password(password: str) -> str:
    """Return a password's argon2id hash, with RFC 9106's parameters for little memory."""
    return PasswordHasher().hash(password)


class Attempts:
    """Counts attempts by name: some at once, then one more whenever one is `interval_s` old."""

    def __init__(self, at_once: int, period_s: float, clock: Callable[[], float]) -> None:
        self._interval_s = period_s / at_once
        self._at_once_s = period_s - self._interval_s
        self._clock = clock
        # The time at which all attempts of a name are forgotten; the name tried longest ago is
        # first.
        self._forgotten_at: dict[str, float] = {}

    def __len__(self) -> int:
        """Return the number of names remembered."""
        return len(self._forgotten_at)

    def take(self, name: str = "") -> bool:
        """Count an attempt; return False, without counting it, if there were too many."""
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
        # One comparison at a time for names of the file, and one for others: each takes 64 MiB.
        self._known = asyncio.Lock()
        self._turns = asyncio.Lock()
        self._names = Attempts(ATTEMPTS_PER_NAME, ATTEMPTS_S, clock)
        self._total = Attempts(ATTEMPTS_IN_TOTAL, ATTEMPTS_S, clock)

    @property
    def names_remembered(self) -> int:
        """The number of names counted now."""
        return len(self._names)

    async def check(self, name: str, password: str) -> User | None:
        """Return the user with this name and password, or None.

        Raises:
            TooManyAttemptsError: too many attempts of this name; or in total, and the password is
                wrong.
        """
        # All names that cannot be in the file count as one, so that no long text is remembered.
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
        """Take as long as an attempt with a made-up name: a wait for others, and a comparison.

        The comparison of a name in the file may have ended before its turn.
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
    """The result of a comparison of a password with a hash, and its duration."""

    is_right: bool
    took_s: float
