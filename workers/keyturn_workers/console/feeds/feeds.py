"""All that flows into the console's model, and the reports that it asks for (SPEC 16.1, 16.2).

`Feeds.run` reads the streams, watches the queues and asks control workers for reports, for ever
and across lost connections. While a page is looked at it asks more often. Without a broker it
shows what it knows, and since when it knows no more.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final, Protocol

from keyturn.crypto import EventVerifier, VerifyKey
from keyturn.errors import EventsUnavailableError
from keyturn.identifiers import ALL_PROJECTS, parse_time
from keyturn.messages import STATUS_LIMIT, StatusReported, StatusView
from keyturn.publisher.connection import Broker, BrokerConnection
from keyturn.publisher.event_stream import Start, StreamRecord, Verifier
from keyturn.topology import AUDIT_STREAM, EVENTS_STREAM, WORKERS_STREAM, publisher_stream
from keyturn_workers.console.feeds.audit_feed import NEWEST, AuditFolder, read_older
from keyturn_workers.console.feeds.broker_watch import BrokerWatch
from keyturn_workers.console.feeds.census_driver import CensusDriver
from keyturn_workers.console.feeds.event_feed import EventFolder, HistoryReader
from keyturn_workers.console.feeds.feed_state import FeedState
from keyturn_workers.console.feeds.queue_watcher import QueueWatcher
from keyturn_workers.console.feeds.refresher import Refresher
from keyturn_workers.console.feeds.requester import (
    StatusArguments,
    StatusPublisher,
    StatusRequester,
)
from keyturn_workers.console.feeds.stream_reader import Handled, StreamReader
from keyturn_workers.console.model import FeedName, Model

_log = logging.getLogger(__name__)

LIMIT: Final = 1000
MAX_FAILURE_PAGES: Final = 5
WORKERS_PAST: Final = timedelta(minutes=15)
EXPIRE_EVERY_S: Final = 60.0
RENEW_EVERY_S: Final = 0.25
RENEWED_AT_ONCE: Final = 100
"""Rows of projects: a few milliseconds."""
REPORTS_WAIT_S: Final = 15.0
"""How long the first inventory waits for the reports of earlier runs."""
_TIMEOUT_S: Final = 30.0
_STREAM_FEEDS: Final[tuple[FeedName, ...]] = ("events", "history", "reports", "workers", "audit")


class FeedSettings(Protocol):
    """What the feeds need of `ConsoleSettings`."""

    @property
    def deployment(self) -> str: ...  # noqa: D102 - as there
    @property
    def publisher_name(self) -> str: ...  # noqa: D102
    @property
    def event_public_key(self) -> tuple[VerifyKey, ...]: ...  # noqa: D102
    @property
    def console_history_s(self) -> int: ...  # noqa: D102
    @property
    def console_refresh_s(self) -> float: ...  # noqa: D102


class Feeds:
    """Reads, watches and asks.

    Args:
        settings: Of the console.
        model: Takes all that is read.
        publisher: Publishes the console's requests.
        broker: The broker's address.

    Attributes:
        viewers: How many pages are looked at.
    """

    def __init__(
        self, settings: FeedSettings, model: Model, publisher: StatusPublisher, broker: Broker
    ) -> None:
        self._settings = settings
        self._model = model
        self._requester = StatusRequester(publisher, model)
        self._census = CensusDriver(self._requester, model)
        self._refresher = Refresher(
            self._requester,
            model,
            refresh_s=settings.console_refresh_s,
            is_viewed=lambda: self.viewers > 0,
        )
        self._connections: list[BrokerConnection] = []
        self._root = BrokerConnection(broker, publish_timeout_s=_TIMEOUT_S)
        names: tuple[FeedName, ...] = (*_STREAM_FEEDS, "queues")
        self._states = {name: FeedState(name, model) for name in names}
        self._broker = BrokerWatch(self._connection(), self._states.values())
        self._queues = QueueWatcher(self._connection(), model, self._states["queues"])
        self._signatures = EventVerifier(settings.deployment, settings.event_public_key)
        self._older_audit = asyncio.Lock()
        self.viewers = 0

    def _connection(self) -> BrokerConnection:
        connection = self._root.separate()
        self._connections.append(connection)
        return connection

    def _verifier(self) -> Verifier:
        return Verifier(self._settings.deployment, self._settings.event_public_key)

    async def run(self) -> None:
        """Run for ever; cancel it to stop."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for coroutine in (
                    self._broker.run(),
                    self._queues.run(lambda: self.viewers > 0),
                    self._expire(),
                    self._renew(),
                ):
                    tasks.create_task(coroutine)
                self._start_events(tasks)
                reports = self._start_reports(tasks)
                self._start_workers(tasks)
                self._start_audit(tasks)
                tasks.create_task(self._ask(reports))
        finally:
            await self._census.close()
            await self._requester.close()
            for connection in self._connections:
                await connection.close()

    def _start_events(self, tasks: asyncio.TaskGroup) -> None:
        fold = EventFolder(self._verifier(), self._model, self._refresher.notice)
        # From the last event on: what is before is the history's, and begins with the newest hour.
        live = StreamReader(
            self._connection(),
            EVENTS_STREAM,
            lambda last: self._model.now() if last is None else last,
            fold,
            self._states["events"],
        )
        history = HistoryReader(
            self._connection(),
            live,
            EventFolder(self._verifier(), self._model, is_live=False),
            self._states["history"],
            self._broker,
            length=timedelta(seconds=self._settings.console_history_s),
            now=self._model.now,
        )
        tasks.create_task(live.run())
        tasks.create_task(live.watch())
        tasks.create_task(history.run(lambda: fold.newest_at))

    def _start_reports(self, tasks: asyncio.TaskGroup) -> StreamReader:
        verifier = self._verifier()

        def handle(record: StreamRecord) -> Handled:
            event = next(iter(verifier.events(record)), None)
            if isinstance(event, StatusReported):
                self._model.apply_report(event)
            at = None if event is None else parse_time(event.at)
            return Handled(at, verifier.refused)

        name = publisher_stream(self._settings.publisher_name)
        return self._start(tasks, "reports", name, lambda _: "first", handle)

    def _start_workers(self, tasks: asyncio.TaskGroup) -> None:
        verifier = self._verifier()

        def handle(record: StreamRecord) -> Handled:
            report = verifier.worker_report(record)
            if report is not None:
                self._model.apply_worker(report)
            at = None if report is None else parse_time(report.at)
            return Handled(at, verifier.refused)

        self._start(
            tasks, "workers", WORKERS_STREAM, lambda _: self._model.now() - WORKERS_PAST, handle
        )

    def _start_audit(self, tasks: asyncio.TaskGroup) -> None:
        def start(last: int | None) -> Start:
            first = 0 if last is None else max(0, last - NEWEST + 1)
            self._model.set_audit_has_older(has_older=first > 0)
            return first

        fold = AuditFolder(self._signatures, self._model)
        self._start(tasks, "audit", AUDIT_STREAM, start, fold)

    def _start(
        self,
        tasks: asyncio.TaskGroup,
        feed: FeedName,
        stream: str,
        start: Callable[[int | None], Start],
        handle: Callable[[StreamRecord], Handled],
    ) -> StreamReader:
        reader = StreamReader(self._connection(), stream, start, handle, self._states[feed])
        tasks.create_task(reader.run())
        tasks.create_task(reader.watch())
        return reader

    async def _ask(self, reports: StreamReader) -> None:
        """Ask control workers, once the reports of earlier runs say what is held already."""
        await self._broker.is_up.wait()
        try:
            async with asyncio.timeout(REPORTS_WAIT_S):
                await reports.caught_up.wait()
        except TimeoutError:
            _log.info("asking for reports before those of earlier runs were read")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._refresher.run_singles())
            tasks.create_task(self._refresher.run_inventories())
            tasks.create_task(self._refresher.run_running())

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_EVERY_S)
            self._model.expire()

    async def _renew(self) -> None:
        """Compute what changed before a page asks for it, a little at a time."""
        while True:
            is_more = self._model.renew(RENEWED_AT_ONCE)
            await asyncio.sleep(0 if is_more else RENEW_EVERY_S)

    @contextmanager
    def viewing(self) -> Iterator[None]:
        """A page is looked at for the duration of the block: ask more often meanwhile."""
        self.viewers += 1
        if self.viewers == 1:
            self._queues.look()
            self._refresher.look()
        try:
            yield
        finally:
            self.viewers -= 1

    async def request(
        self,
        view: StatusView,
        project: str = ALL_PROJECTS,
        *,
        sweep_id: str | None = None,
        after: str | None = None,
        limit: int = STATUS_LIMIT,
        actor: str | None = None,
    ) -> StatusReported:
        """Ask for one page of a report that a person waits for; the model takes it, too.

        Raises:
            PublisherError: it could not be sent, or was not answered in time.
            CodedError: control workers refused it.
        """
        arguments = StatusArguments(view, project, sweep_id, after, limit)
        return await self._requester.request(arguments, actor=actor, eager=True)

    async def request_project(self, name: str, *, actor: str | None = None) -> StatusReported:
        """Ask for one project's keyring."""
        return await self.request("projects", name, actor=actor)

    async def request_sweep(
        self, project: str, sweep_id: str, *, actor: str | None = None
    ) -> StatusReported:
        """Ask for one sweep; `project` is `*` for a sweep of all."""
        return await self.request("sweep", project, sweep_id=sweep_id, limit=LIMIT, actor=actor)

    async def request_failures(
        self, project: str, sweep_id: str, *, actor: str | None = None
    ) -> StatusReported:
        """Ask for what a sweep could not bring to the desired state: the first pages of it."""
        report = await self.request(
            "failures", project, sweep_id=sweep_id, limit=LIMIT, actor=actor
        )
        for _ in range(MAX_FAILURE_PAGES - 1):
            if report.next is None:
                break
            report = await self.request(
                "failures",
                project,
                sweep_id=sweep_id,
                after=report.next,
                limit=LIMIT,
                actor=actor,
            )
        return report

    async def request_evidence(self, project: str, *, actor: str | None = None) -> StatusReported:
        """Ask for a project's evidence, with its envelopes."""
        report = await self.request("evidence", project, actor=actor)
        while report.next is not None:
            report = await self.request("evidence", project, after=report.next, actor=actor)
        return report

    async def request_master_keys(self, *, actor: str | None = None) -> StatusReported:
        """Ask for the master keys."""
        return await self.request("master_keys", actor=actor)

    def census(self, actor: str | None = None) -> None:
        """Begin a census of objects by key, or go on with one that stopped."""
        self._census.start(actor)

    def cancel_census(self) -> None:
        """Stop the census; it can go on later."""
        self._census.cancel()

    async def request_older_audit(self, since: datetime | None = None) -> None:
        """Read earlier records of the audit trail; the model takes them.

        Args:
            since: Where to begin; by default, some thousand records before those that are held.

        Raises:
            EventsUnavailableError: the stream cannot be read, or not in time.
        """
        async with self._older_audit:
            connection = self._root.separate()
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    await read_older(connection, self._signatures, self._model, since)
            except TimeoutError as exc:
                raise EventsUnavailableError("the audit trail was not read in time") from exc
            finally:
                await connection.close()
