"""A publisher whose control workers are a function of the test."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from keyturn.errors import WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn.messages import Event


class FakePublisher:
    """Answers requests by `answer`; None is silence."""

    def __init__(self, answer: Callable[[dict[str, Any]], Event | None]) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def status(self, view: str, project: str = "*", **arguments: Any) -> str:
        self.requests.append({"view": view, "project": project} | arguments)
        return str(len(self.requests) - 1)

    async def wait(self, request_id: str, *, timeout_s: float = 60.0) -> Event:
        await self.gate.wait()
        event = self.answer(self.requests[int(request_id)])
        if event is None:
            raise WaitTimeoutError(f"no answer within {timeout_s:g} s")
        return event
