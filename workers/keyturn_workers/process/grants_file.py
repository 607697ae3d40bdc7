"""The file of publishers, and its changes (SPEC 6.10).

The file is read again when it changes, on SIGHUP, and before a message of an unknown publisher or
key is refused. So adding or revoking a publisher or a key takes effect on all workers within
seconds, without a restart.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

import structlog

from keyturn.tls import FileState, file_state
from keyturn_workers.core.grants import Grant, parse_grants
from keyturn_workers.process.background import raise_if_canceled

DeclareStreams = Callable[[Collection[str]], Awaitable[None]]
# How often a file is checked, and how often it is read even if it looks unchanged.
_INTERVAL_S: Final = 1

_log = structlog.get_logger()


class GrantsFile(Mapping[str, Grant]):
    """The grants of a file, as last applied."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ValueError: it cannot be read, or contains no grants.
        """
        self.path = path
        self.state: FileState | None = None
        self._grants = self.read()

    def read(self) -> dict[str, Grant]:
        """The grants in the file now; they take effect once they are passed to `replace`.

        Raises:
            ValueError: as `__init__`.
        """
        try:
            # Before the content: a write in between then counts as one more change.
            self.state = file_state(self.path)
            text = self.path.read_text(encoding="utf-8")
        except OSError as exc:
            self.state = None
            raise ValueError(f"the file cannot be read ({exc.strerror})") from None
        except UnicodeDecodeError:
            self.state = None
            raise ValueError("the file is not UTF-8") from None
        return parse_grants(text)

    def replace(self, grants: Mapping[str, Grant]) -> None:
        """Apply these grants from now on."""
        self._grants = dict(grants)

    def __getitem__(self, name: str) -> Grant:
        return self._grants[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._grants)

    def __len__(self) -> int:
        return len(self._grants)


class GrantsKeeper:
    """Keeps a worker's grants up to date with their file."""

    def __init__(self, grants: GrantsFile, declare_streams: DeclareStreams) -> None:
        self._grants = grants
        self._declare_streams = declare_streams
        self._reading = asyncio.Lock()
        self._reload = asyncio.Event()
        self._read_at = time.monotonic()
        self._pending: frozenset[str] = frozenset()

    def is_pending(self, publisher: object) -> bool:
        """Return True if the file names this publisher, but its stream is not declared yet."""
        return isinstance(publisher, str) and publisher in self._pending

    async def refresh(self) -> bool:
        """Apply a changed file; return True if any grant changed.

        A file that looks unchanged is read anyway if it was last read a second ago. A malformed
        file changes nothing.
        """
        async with self._reading:
            if not self._is_due():
                return False
            self._read_at = time.monotonic()
            try:
                grants = self._grants.read()
            except ValueError as exc:
                _log.error("publishers not read: the old grants stay in effect", problem=str(exc))
                return False
            return await self._apply(grants)

    def _is_due(self) -> bool:
        return time.monotonic() - self._read_at >= _INTERVAL_S or self._has_changed()

    def _has_changed(self) -> bool:
        # If the file is gone, `read` logs the problem once.
        return file_state(self._grants.path) != self._grants.state

    async def _apply(self, grants: dict[str, Grant]) -> bool:
        before = dict(self._grants)
        new = grants.keys() - before.keys()
        # Revocations apply at once; a new publisher waits for its stream (SPEC 6.8).
        self._grants.replace({name: grants[name] for name in grants if name in before})
        if new:
            self._pending = frozenset(new)
            try:
                await self._declare_streams(new)
            except Exception as exc:  # noqa: BLE001  # any error of the broker
                _log.error(
                    "new publishers not admitted: their streams could not be declared",
                    publishers=sorted(new),
                    problem=f"{type(exc).__name__}: {exc}",
                )
                return dict(self._grants) != before
            self._grants.replace(grants)
        self._pending = frozenset()
        changed = grants != before
        if changed:
            _log.info(
                "publishers changed",
                added=sorted(new),
                removed=sorted(before.keys() - grants.keys()),
                changed=sorted(n for n in grants if n in before and grants[n] != before[n]),
            )
        return changed

    def reload(self) -> None:
        """Read the file soon, changed or not: for SIGHUP."""
        self._read_at = 0.0
        self._reload.set()

    async def watch(self) -> None:
        """Follow the file's changes forever."""
        while True:
            try:
                async with asyncio.timeout(_INTERVAL_S):
                    await self._reload.wait()
            except TimeoutError:
                if not (self._pending or self._has_changed()):
                    continue
            self._reload.clear()
            await self.refresh()
            raise_if_canceled()
