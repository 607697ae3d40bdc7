"""Server-sent events: something that a page shows has changed, so it fetches itself (SPEC 16.3).

A stream says only that, at most once a second. Sign-in ends it with its session, and when the
process stops; the browser then asks again, and learns why.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager
from typing import Final

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from keyturn_workers.console.auth import session_of
from keyturn_workers.console.model import TOPICS, Changes, Topic

REFRESH: Final = "refresh"
"""The name of the only event. Its id names the state that it is about."""
MIN_INTERVAL_S: Final = 1.0
HEARTBEAT_S: Final = 15
MAX_STREAMS: Final = 300  # below the connections that the server accepts
MAX_STREAMS_OF_A_PERSON: Final = 30
_SEND_TIMEOUT_S: Final = 30
_MAX_DIGITS: Final = 18


class Live:
    """All open streams.

    Args:
        changes: Of the model.
        viewing: Notes that a page is looked at, for as long as it is.
        min_interval_s: Between two events of a stream.
    """

    def __init__(
        self,
        changes: Changes,
        viewing: Callable[[], AbstractContextManager[None]],
        *,
        min_interval_s: float = MIN_INTERVAL_S,
    ) -> None:
        self._changes = changes
        self._viewing = viewing
        self._min_interval_s = min_interval_s
        self._open: Counter[str] = Counter()
        # States of another run of this process are not comparable.
        self._run = os.urandom(4).hex()

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return self._open.total()

    def state(self) -> str:
        """Names the state that a page shows which is rendered now."""
        return f"{self._run}.{self._changes.version}"

    async def serve(self, request: Request) -> Response:
        """Answer `GET /events?topics=…&since=…`; without topics, of all of them."""
        asked = request.query_params.get("topics")
        topics = TOPICS if asked is None else TOPICS.intersection(asked.split(","))
        if not topics:
            raise HTTPException(400, "There are no such topics.")
        person = session_of(request).person.id
        if self.streams >= MAX_STREAMS or self._open[person] >= MAX_STREAMS_OF_A_PERSON:
            raise HTTPException(503, "Too many pages are open.", {"Retry-After": "30"})
        seen = request.headers.get("last-event-id") or request.query_params.get("since", "")
        return EventSourceResponse(
            self._events(person, topics, self._version(seen)),
            ping=HEARTBEAT_S,
            send_timeout=_SEND_TIMEOUT_S,
        )

    async def _events(
        self, person: str, topics: frozenset[Topic], seen: int
    ) -> AsyncGenerator[ServerSentEvent, None]:
        self._open[person] += 1
        changed = self._changes.subscribe()
        try:
            with self._viewing():
                while True:
                    # Nothing is awaited between this question and the wait, so no change is lost.
                    if not self._changes.has_changed_since(seen, topics):
                        await anext(changed)
                        continue
                    seen = self._changes.version
                    yield ServerSentEvent(data="", event=REFRESH, id=self.state())
                    # What changes meanwhile comes together, at the next turn.
                    await asyncio.sleep(self._min_interval_s)
        finally:
            self._open[person] -= 1
            self._open += Counter()  # drops those who have none
            await changed.aclose()

    def _version(self, state: str) -> int:
        """The version of a state; one before all others if it is not of this run."""
        run, _, version = state.partition(".")
        is_version = version.isascii() and version.isdigit() and len(version) < _MAX_DIGITS
        return int(version) if run == self._run and is_version else -1
