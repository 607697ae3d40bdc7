"""All that flows into the console's model, and the reports that it asks for (SPEC 16.1, 16.2).

`Feeds.run` reads the streams, watches the queues and asks control workers for reports, for ever
and across lost connections. While a page is looked at it asks more often.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from pydantic import SecretStr

from keyturn.crypto import VerifyKey
from keyturn.identifiers import ALL_PROJECTS
from keyturn.messages import STATUS_LIMIT, StatusReported, StatusView
from keyturn_workers.console.feeds.census_driver import CensusDriver
from keyturn_workers.console.feeds.requester import (
    StatusArguments,
    StatusPublisher,
    StatusRequester,
)
from keyturn_workers.console.model import Model

LIMIT: Final = 1000
MAX_FAILURE_PAGES: Final = 5


class FeedSettings(Protocol):
    """What the feeds need of `ConsoleSettings`."""

    @property
    def deployment(self) -> str: ...  # noqa: D102 - as there
    @property
    def amqp_url(self) -> SecretStr: ...  # noqa: D102
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

    Attributes:
        viewers: How many pages are looked at.
    """

    def __init__(self, settings: FeedSettings, model: Model, publisher: StatusPublisher) -> None:
        self._settings = settings
        self._model = model
        self._requester = StatusRequester(publisher, model)
        self._census = CensusDriver(self._requester, model)
        self.viewers = 0

    async def run(self) -> None:
        """Run for ever; cancel it to stop."""
        try:
            await asyncio.Event().wait()
        finally:
            await self._census.close()
            await self._requester.close()

    @contextmanager
    def viewing(self) -> Iterator[None]:
        """A page is looked at for the duration of the block: ask more often meanwhile."""
        self.viewers += 1
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
