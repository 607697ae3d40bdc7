"""A body on its way to the gateway (SPEC 9.4): watched for progress, its failure kept.

The HTTP client wraps what a body's source raises; the caller gets the original exception. The
idle timeout must never run while the source is read: a slow source is the caller's business, a
server that stops reading is not.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

from keyturn.publisher.staging import Body, blocks


class RequestBody:
    """A body that is sent once.

    Args:
        body: In any form that a publisher accepts.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self.failure: Exception | None = None

    @property
    def headers(self) -> dict[str, str]:
        """`Content-Length` of bytes in memory; a file may grow while it is read."""
        if not isinstance(self._body, bytes | bytearray | memoryview):
            return {}
        return {"Content-Length": str(memoryview(self._body).nbytes)}

    async def blocks_with_timeout(
        self, idle: asyncio.Timeout, idle_s: float, wait_s: float
    ) -> AsyncIterator[memoryview]:
        """The blocks in order; `idle` runs while one is sent, `wait_s` longer after the last."""
        try:
            async with aclosing(blocks(self._body)) as source:
                reset(idle, None)
                async for block in source:
                    reset(idle, idle_s)
                    yield block
                    reset(idle, None)
            reset(idle, idle_s + wait_s)
        except Exception as exc:
            self.failure = exc
            raise


def reset(idle: asyncio.Timeout, seconds: float | None) -> None:
    """Let a timeout expire in `seconds`, or never."""
    when = None if seconds is None else asyncio.get_running_loop().time() + seconds
    # It can have expired, or the response be there already: the last steps of a request.
    with suppress(RuntimeError):
        idle.reschedule(when)
