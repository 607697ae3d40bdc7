"""The sessions that were signed out before their end (SPEC 16.3).

A cookie is valid by its signature alone, so a copy of one must be refused until it would have ended
anyway. With a file this outlasts a restart. It holds digests of session ids: no secret.
"""

import time
from collections.abc import Callable
from pathlib import Path

import structlog

from keyturn.errors import SettingsError

_log = structlog.get_logger()


class SignedOut:
    """Ids of sessions, each until the session's end."""

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        """Read the file, and write it again without what has ended.

        Raises:
            SettingsError: it cannot be read or written.
        """
        self._path = path
        self._clock = clock
        self._ends: dict[str, float] = {}
        if path is None:
            return
        try:
            path.touch(mode=0o600)
            self._ends = dict(_parse(path.read_text(encoding="utf-8")))
            self._purge()
            path.write_text("".join(map(_line, self._ends.items())), encoding="utf-8")
        except (OSError, ValueError) as exc:
            raise SettingsError(
                f"KEYTURN_CONSOLE_SIGNED_OUT_FILE cannot be used ({type(exc).__name__})"
            ) from exc

    def __contains__(self, session: object) -> bool:
        """Whether a session was signed out."""
        return session in self._ends

    def add(self, session: str, ends_at: float) -> None:
        """Sign a session out."""
        self._purge()
        self._ends[session] = ends_at
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line((session, ends_at)))
        except OSError as exc:
            # This process remembers it all the same.
            _log.error("sign-out not recorded in the file", error=type(exc).__name__)

    def _purge(self) -> None:
        now = self._clock()
        self._ends = {session: end for session, end in self._ends.items() if end > now}


def _line(entry: tuple[str, float]) -> str:
    session, ends_at = entry
    return f"{session} {ends_at:.0f}\n"


def _parse(text: str) -> list[tuple[str, float]]:
    entries = []
    for line in text.splitlines():
        session, _, ends_at = line.partition(" ")
        entries.append((session, float(ends_at)))
    return entries
