"""Requests for status reports, so that control workers that are away find no pile of them.

SPEC 16.1. At most one request per view and arguments is under way: who asks meanwhile gets the
same report. After a timeout, requests of that kind pause, longer and longer.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from keyturn.errors import (
    CodedError,
    KmsUnavailableError,
    MalformedRequestError,
    NotPermittedError,
    PublisherError,
    StorageUnavailableError,
    TooManyRequestsError,
    all_errors,
)
from keyturn.identifiers import ALL_PROJECTS
from keyturn.messages import STATUS_LIMIT, Event, StatusRejected, StatusReported, StatusView
from keyturn_workers.console.model import Feed, Model

TIMEOUT_S: Final = 30.0
PAUSES_S: Final = (5.0, 15.0, 60.0, 300.0)
MAX_UNDER_WAY: Final = 4
"""Requests at once, of all kinds: a control worker reads two at a time."""
_BUSY: Final = (TooManyRequestsError.code, StorageUnavailableError.code)
# What concerns all reports; other codes say something about what was asked for.
_PROBLEMS: Final = (
    StorageUnavailableError.code,
    KmsUnavailableError.code,
    NotPermittedError.code,
    MalformedRequestError.code,
)


class StatusPublisher(Protocol):
    """What publishes requests and waits for their answers: `keyturn.publisher.Publisher`."""

    async def status(
        self,
        view: StatusView,
        project: str = ALL_PROJECTS,
        *,
        sweep_id: str | None = None,
        after: str | None = None,
        limit: int = STATUS_LIMIT,
        known: str | None = None,
        actor: str | None = None,
    ) -> str:
        """Publish a request; return its id."""
        ...

    async def wait(self, request_id: str, *, timeout_s: float = 60.0) -> Event:
        """The signed event that answers it."""
        ...


@dataclass(frozen=True, slots=True)
class StatusArguments:
    """What a request asks for; two that are equal have the same answer."""

    view: StatusView
    project: str = ALL_PROJECTS
    sweep_id: str | None = None
    after: str | None = None
    limit: int = STATUS_LIMIT
    known: str | None = None


class PausedError(PublisherError):
    """Control workers did not answer lately; the next request is sent after a pause."""


@dataclass(slots=True)
class _Pause:
    """After how many timeouts in a row requests pause, and until when."""

    timeouts: int = 0
    until: float = 0.0


class StatusRequester:
    """Requests reports, and gives them to the model.

    Args:
        publisher: Publishes and waits.
        model: Takes the reports.
        timeout_s: Seconds for one answer.
        pauses_s: How long to pause after the 1st, 2nd, … request without an answer.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        publisher: StatusPublisher,
        model: Model,
        *,
        timeout_s: float = TIMEOUT_S,
        pauses_s: Sequence[float] = PAUSES_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._publisher = publisher
        self._model = model
        self._timeout_s = timeout_s
        self._pauses_s = pauses_s
        self._resumed = asyncio.Event()
        self._clock = clock
        self._under_way: dict[StatusArguments, asyncio.Task[StatusReported]] = {}
        # All kinds share one pause: workers that do not answer one answer none.
        self._pause = _Pause()
        self._slots = asyncio.Semaphore(MAX_UNDER_WAY)

    @property
    def is_paused(self) -> bool:
        """Whether only requests that a person waits for should be sent now."""
        return self._clock() < self._pause.until

    @property
    def paused_s(self) -> float:
        """Seconds until the pause ends."""
        return max(0.0, self._pause.until - self._clock())

    async def ready(self) -> None:
        """Wait until the pause is over, or a person wants to know now."""
        while (left_s := self.paused_s) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._resumed.wait()

    def resume(self) -> None:
        """End the pause: a person has opened a page. The next one is as long as it would be."""
        self._pause.until = 0.0
        self._resumed.set()

    async def request(
        self, arguments: StatusArguments, *, actor: str | None = None, eager: bool = False
    ) -> StatusReported:
        """The report that answers a request with these arguments; the model has it then, too.

        Args:
            arguments: What is asked for.
            actor: The person for whom it is asked.
            eager: Whether a person waits for it: such a request is sent during a pause too.

        Raises:
            PausedError: control workers did not answer lately.
            PublisherError: it could not be sent, or was not answered in time.
            CodedError: control workers refused it.
        """
        task = self._under_way.get(arguments)
        if task is None:
            if self.is_paused and not eager:
                raise PausedError("control workers have not answered; waiting before the next try")
            task = asyncio.create_task(self._send(arguments, actor))
            self._under_way[arguments] = task
            task.add_done_callback(lambda done: self._forget(arguments, done))
        return await asyncio.shield(task)

    def _forget(self, arguments: StatusArguments, task: asyncio.Task[StatusReported]) -> None:
        del self._under_way[arguments]
        if not task.cancelled():
            task.exception()  # marks it as retrieved: the caller may be gone

    async def _send(self, arguments: StatusArguments, actor: str | None) -> StatusReported:
        async with self._slots:
            try:
                request_id = await self._publisher.status(
                    arguments.view,
                    arguments.project,
                    sweep_id=arguments.sweep_id,
                    after=arguments.after,
                    limit=arguments.limit,
                    known=arguments.known,
                    actor=actor,
                )
                event = await self._publisher.wait(request_id, timeout_s=self._timeout_s)
            except PublisherError as exc:
                self._note_failure(str(exc))
                raise
        if isinstance(event, StatusRejected):
            self._note_answer(event.code, event.detail)
            raise _error_of(event)
        if not isinstance(event, StatusReported):  # the waiter matches types
            raise StorageUnavailableError(f"unexpected answer {event.type}")
        self._note_answer(event.code, event.detail)
        self._model.apply_report(event)
        return event

    def _note_failure(self, problem: str) -> None:
        pause_s = self._pauses_s[min(self._pause.timeouts, len(self._pauses_s) - 1)]
        self._pause = _Pause(self._pause.timeouts + 1, self._clock() + pause_s)
        self._resumed.clear()
        held = self._model.feed("status")
        since = held.since if held.problem is not None else self._model.now()
        self._model.set_feed(Feed("status", problem=problem, since=since, as_of=held.as_of))

    def _note_answer(self, code: str | None, detail: str | None) -> None:
        """A control worker answered, perhaps that it cannot read, or refuses."""
        self._pause = _Pause()
        if code in _BUSY:  # it must not be asked again at once
            self._pause.until = self._clock() + self._pauses_s[0]
            self._resumed.clear()
        held = self._model.feed("status")
        since = held.since if held.is_connected else self._model.now()
        self._model.set_feed(
            Feed(
                "status",
                is_connected=True,
                is_caught_up=True,
                problem=f"{code}: {detail}" if code in _PROBLEMS else None,
                since=since,
                as_of=self._model.now(),
            )
        )

    async def close(self) -> None:
        """Abandon what is under way."""
        tasks = [*self._under_way.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _error_of(event: StatusRejected) -> CodedError:
    return all_errors().get(event.code, StorageUnavailableError)(event.detail)
