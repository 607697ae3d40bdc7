"""A stream of marks in memory, which one process reads at once or later."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from keyturn.errors import MarksUnavailableError
from keyturn_workers.keys.keyring.marks import Finding, Mark, MarkTable
from tests.unit.keyturn_workers.factories import MASTER_KEYS
from tools.harness.local_keys import parse_keyring

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyturn_workers.core.keyring import Keyring


class FakeWitness:
    """What a worker knows of the marks.

    Attributes:
        published: The marks that it published itself, by project.
        stream: Marks that are on the stream and were not received yet.
        is_current: Whether it knows the newest marks.
        waits: How often a reader waited until it does.
        is_gateway: Whether it also accepts keyrings that are not marked.
        before_publish: Runs before a mark is published.
        signed_before: The projects whose mark an earlier event key signed, and its id.
    """

    def __init__(self) -> None:
        self.table = MarkTable()
        self.published: list[tuple[str, Mark]] = []
        self.stream: list[tuple[str, Mark]] = []
        self.is_current = True
        self.waits = 0
        self.is_back = False
        self.is_gateway = False
        self.before_publish: Callable[[], Awaitable[object]] | None = None
        self.signed_before: dict[str, str] = {}
        self._callbacks: list[Callable[[str, Mark], None]] = []

    def check_current(self, project: str) -> None:
        if self.is_gateway:
            return
        if not self.is_current or self.table.find_lost(project) is not None:
            raise MarksUnavailableError("not current")

    async def become_current(self) -> None:
        self.waits += not self.is_current
        self.is_current = self.is_current or self.is_back

    async def require_current(self) -> None:
        if not self.is_current:
            raise MarksUnavailableError("not current")

    def accepts(self, finding: Finding) -> bool:
        is_unread = finding is Finding.UNKNOWN and not self.is_current
        return self.is_gateway and (finding is Finding.UNMARKED or is_unread)

    async def catch_up(self) -> None:
        if not self.is_current:
            raise MarksUnavailableError("not current")
        while self.stream:
            self.receive(*self.stream.pop(0))

    async def publish(self, keyring: Keyring, mark: Mark) -> None:
        if self.before_publish is not None:
            await self.before_publish()
        if not self.is_current:
            raise MarksUnavailableError("not current")
        self.published.append((keyring.project, mark))
        self.signed_before.pop(keyring.project, None)
        self.receive(keyring.project, mark)

    def when_marked(self, forget: Callable[[str, Mark], None]) -> None:
        self._callbacks.append(forget)

    def receive(self, project: str, mark: Mark, **more: Any) -> None:
        """Receive a mark, as `MarkStream` does."""
        known = self.table.find(project)
        if self.table.receive(project, mark, **more) and known != mark:
            for forget in self._callbacks:
                forget(project, mark)


def mark_of(body: bytes, project: str = "acme") -> Mark:
    """The mark of a keyring's record."""
    keyring = parse_keyring(body, project, MASTER_KEYS)
    return Mark.of(keyring, hashlib.sha256(body).digest())
