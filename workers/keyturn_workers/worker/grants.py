"""What each publisher may do, and how a worker follows changes to it (SPEC 6.3, 6.10).

`KEYTURN_PUBLISHERS` is JSON, or the path of a file with that JSON. A file is read again when it
changes, on SIGHUP, and before a message of an unknown publisher or key is refused. So a publisher
or one of its keys is added or revoked on all workers within seconds, without a restart.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from keyturn.crypto import VerifyKey
from keyturn.errors import MalformedRequestError
from keyturn.identifiers import is_project, is_short_name
from keyturn.messages import load_json
from keyturn.settings import json_text, seed_from_b64
from keyturn.tls import FileState, file_state
from keyturn.topology import REQUESTS
from keyturn_workers.background import raise_if_canceled

_ALL: Final = "*"
# How often a file is checked, and how often it is read even if it looks unchanged.
_INTERVAL_S: Final = 1

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Grant:
    """The grant of one publisher: its public keys, types, projects and sources."""

    keys: tuple[VerifyKey, ...]
    may: frozenset[str]
    projects: frozenset[str]
    sources: frozenset[str] = frozenset()

    def allows(self, message_type: str, project: str) -> bool:
        """Whether the publisher may send this type for this project (`*` is all of them)."""
        # A request for all projects needs the grant for all: its project is then "*".
        return (_ALL in self.may or message_type in self.may) and (
            _ALL in self.projects or project in self.projects
        )


def parse_named_settings(value: object) -> dict[str, Any]:
    """A setting that is a JSON object with short names as its keys.

    Raises:
        ValueError: anything else, without repeating it.
    """
    try:
        document = load_json(json_text(value).encode()) if isinstance(value, str) else value
    except MalformedRequestError as exc:
        raise ValueError(exc.detail.removeprefix("the body is ")) from None
    except UnicodeEncodeError:
        raise ValueError("not a JSON object") from None
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004  # pydantic wants ValueError
    for name in document:
        if not is_short_name(name):
            raise ValueError("its names have 1 to 32 characters of a-z, 0-9 and -")
    return document


def parse_grants(value: object) -> dict[str, Grant]:
    """The grants in a JSON object.

    Raises:
        ValueError: the rule that fails, without any value.
    """
    return {name: _grant(fields) for name, fields in parse_named_settings(value).items()}


def _grant(fields: object) -> Grant:
    if not isinstance(fields, dict) or fields.keys() - {"sources"} != {"keys", "may", "projects"}:
        raise ValueError("each publisher needs keys, may and projects; sources is optional")
    sources = fields.get("sources", [])
    lists = [fields["keys"], fields["may"], fields["projects"], sources]
    if not all(
        isinstance(items, list) and all(isinstance(i, str) for i in items) for items in lists
    ):
        raise ValueError("keys, may, projects and sources must be lists of strings")
    if any(item not in (*REQUESTS, _ALL) for item in fields["may"]):
        raise ValueError(f"may holds * or some of {', '.join(REQUESTS)}")
    if not all(item == _ALL or is_project(item) for item in fields["projects"]):
        raise ValueError("projects holds project ids or *")
    if not all(is_short_name(item) for item in sources):
        raise ValueError("sources must be a list of names of sources")
    keys = tuple(VerifyKey.from_bytes(seed_from_b64(key)) for key in fields["keys"])
    projects = frozenset(fields["projects"])
    return Grant(keys, frozenset(fields["may"]), projects, frozenset(sources))


class GrantsFile(Mapping[str, Grant]):
    """The grants of a file, as last applied."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ValueError: it cannot be read, or holds no grants.
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
            # Before the content: what is written in between counts as one more change.
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


DeclareStreams = Callable[[Collection[str]], Awaitable[None]]


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
        """Whether the file names a publisher whose stream could not be declared yet."""
        return isinstance(publisher, str) and publisher in self._pending

    async def refresh(self) -> bool:
        """Apply a file that changed; returns whether any grant changed.

        A file that looks unchanged is read anyway if the last time was a second ago. A malformed
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
        # Of one that is gone, `read` logs once what is wrong with it.
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
