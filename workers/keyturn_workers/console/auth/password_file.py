"""The password file: who may sign in without a provider (SPEC 16.3).

One line each, `name:role:hash`, written by `keyturn console add-user`. The hash is argon2id's in
the PHC format. The file is read again when it changes, so a person who is removed is signed out
within a second; one that cannot be read changes nothing.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import structlog
from argon2 import Type, extract_parameters
from argon2.exceptions import InvalidHashError

from keyturn.errors import SettingsError
from keyturn_workers.console.auth.person import Role

MAX_USERS: Final = 1000
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_ROLES: Final = ("view", "operate")
_CHECK_S: Final = 1.0
# A hash that takes more would take the console's memory or time at each attempt to sign in.
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
    """Whether a name can be in the file."""
    return _NAME.fullmatch(name) is not None


def parse_users(text: str) -> dict[str, User]:
    """The users in a file's text.

    Raises:
        ValueError: the line that is wrong, without repeating it.
    """
    users: dict[str, User] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.strip().partition(":")
        role, _, digest = rest.partition(":")
        if not is_user_name(name) or role not in _ROLES or not _is_argon2id(digest):
            raise ValueError(f"line {number} does not read name:view|operate:hash")
        if name in users:
            raise ValueError(f"line {number} names a user that an earlier line has")
        users[name] = User(name, cast("Role", role), digest)
    if len(users) > MAX_USERS:
        raise ValueError(f"more than {MAX_USERS} users")
    return users


def format_users(users: Mapping[str, User]) -> str:
    """The text of a file with these users."""
    header = "# The console's users: name:role:hash. Change it by `keyturn console add-user`.\n"
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
    """The users of a file, as it was last read."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file.

        Raises:
            SettingsError: it cannot be read, or is malformed.
        """
        self._path = path
        self._clock = clock
        self._checked_at = clock()
        self._version: tuple[int, ...] | None = None
        try:
            self._users = self._read()
        except (OSError, ValueError) as exc:
            raise SettingsError(f"KEYTURN_CONSOLE_PASSWORD_FILE: {_reason(exc)}") from exc

    def user(self, name: str) -> User | None:
        """A user of the file as it is now, or was up to a second ago."""
        if self._clock() - self._checked_at >= _CHECK_S:
            self._checked_at = self._clock()
            self._read_again()
        return self._users.get(name)

    def _read(self) -> dict[str, User]:
        # Before the content: what is written in between counts as one more change.
        self._version = self._current_version()
        return parse_users(self._path.read_text(encoding="utf-8"))

    def _read_again(self) -> None:
        try:
            if self._current_version() == self._version:
                return
            self._users = self._read()
        except (OSError, ValueError) as exc:
            self._version = None
            _log.error("password file not read, the earlier one applies", reason=_reason(exc))
        else:
            _log.info("password file read", users=len(self._users))

    def _current_version(self) -> tuple[int, ...]:
        status = self._path.stat()
        return (status.st_ino, status.st_mtime_ns, status.st_size)


def _reason(exc: OSError | ValueError) -> str:
    if isinstance(exc, OSError):
        return f"the file cannot be read ({exc.strerror or type(exc).__name__})"
    return "it is not UTF-8" if isinstance(exc, UnicodeError) else str(exc)
