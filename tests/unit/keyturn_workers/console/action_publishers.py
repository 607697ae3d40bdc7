"""A publisher without a broker, for what the console does."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.unit.keyturn_workers.cli.fakes import event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from datetime import datetime

    from keyturn.messages import Event

__all__ = ["FakePublisher", "event"]


@dataclass
class FakePublisher:
    """Records requests; each answer is what a test puts into `answers`.

    Attributes:
        sent: Method and arguments of each publication.
        errors: Raised by the first publications, one each.
        wait_errors: Raised by the first waits, one each.
        gate: Publications wait for it.
    """

    sent: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    wait_errors: list[Exception] = field(default_factory=list)
    answers: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    waits: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    async def _publish(self, method: str, given: dict[str, Any]) -> None:
        self.sent.append((method, given))
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)

    async def sweep(self, project: str, *, sweep_id: str | None = None, **given: Any) -> str:
        assert sweep_id is not None
        await self._publish("sweep", {"project": project, "sweep_id": sweep_id, **given})
        return sweep_id

    async def rotate(self, project: str, *, rotation_id: str | None = None, **given: Any) -> str:
        assert rotation_id is not None
        await self._publish("rotate", {"project": project, "rotation_id": rotation_id, **given})
        return rotation_id

    async def delete(
        self, project: str, object_key: str, *, request_id: str | None = None, **given: Any
    ) -> str:
        assert request_id is not None
        names = {"project": project, "key": object_key, "request_id": request_id}
        await self._publish("delete", names | given)
        return request_id

    async def move_dead_letters(
        self, action: str, queue: str, *, request_id: str | None = None, **given: Any
    ) -> str:
        assert request_id is not None
        names = {"action": action, "queue": queue, "request_id": request_id}
        await self._publish("move_dead_letters", names | given)
        return request_id

    async def wait(
        self,
        request_id: str,
        *,
        timeout_s: float = 60.0,
        since: datetime | None = None,
        project: str | None = None,
        request_type: str | None = None,
    ) -> Event:
        del request_id, timeout_s, since, project, request_type
        return await self._answer()

    async def progress(
        self,
        request_id: str,
        *,
        since: datetime | None = None,
        project: str | None = None,
        request_type: str | None = None,
    ) -> AsyncGenerator[Event, None]:
        del request_id, since, project, request_type
        while True:
            yield await self._answer()

    async def _answer(self) -> Event:
        self.waits += 1
        if self.wait_errors:
            raise self.wait_errors.pop(0)
        return await self.answers.get()
