"""Reports of status, asked for in process: what control workers answer consoles (SPEC 16.1).

Commands show what `keyturn_workers.status` reads, all of it, with the operator's own keys. Keyrings
are compared with their marks (SPEC 5.5) where the broker can be reached: a command has no event
key of its own here, follows the stream like a gateway, and adds no marks.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from keyturn.crypto import VerifyKey
from keyturn.errors import EventsUnavailableError
from keyturn.identifiers import ALL_PROJECTS, format_time, parse_time
from keyturn.messages import ProjectStatus, StatusReported, StatusRequested, StatusView
from keyturn.messages.status import STATUS_MAX_LIMIT
from keyturn.publisher.connection import BrokerAddress
from keyturn.publisher.requests import new_id
from keyturn.settings import DeploymentSettings
from keyturn.topology import MARKS_STREAM
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.keyring import Witness
from keyturn_workers.keyring.mark_stream import MarkStream, following
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.status.reader import ROWS_OF, Identity, StatusReader
from keyturn_workers.status.records import Bounds
from keyturn_workers.storage import Storage

OBJECTS_AT_ONCE: Final = 64
WHOLE: Final = Bounds(
    wait_s=None,
    at_once=OBJECTS_AT_ONCE,
    rows=sys.maxsize,
    failures=sys.maxsize,
    page_bytes=sys.maxsize,
    is_detailed=True,
)
"""A command reads everything, and shows it at once."""
_TIMEOUT_S: Final = 60.0
# Nothing is written under it.
_LEASE_S: Final = 15
_MAX_READS: Final = 8


class Reports:
    """Answers queries about one bucket: `keyturn_workers.status` without a broker between.

    Args:
        storage: The bucket.
        keys: The operator's keys.
        witness: The marks, if they can be read.
        bounds: How much a report reads.
    """

    def __init__(
        self,
        storage: Storage,
        keys: OperatorKeys,
        *,
        witness: Witness | None = None,
        bounds: Bounds = WHOLE,
    ) -> None:
        self._is_compared = witness is not None
        # The views that name a deployment or the active master key are not asked for here.
        identity = Identity("", "", ())
        self._reader = StatusReader(storage, keys, identity, witness=witness, bounds=bounds)

    async def pages(
        self, view: StatusView, project: str | None = None, **query: Any
    ) -> AsyncIterator[StatusReported]:
        """All pages of a view, of one project or of all.

        Raises:
            CodedError, StorageAnswerError: not all of it can be read.
        """
        report = None
        while report is None or _has_next(report):
            if report is not None and view == "objects":
                query["after"] = report.next
            elif report is not None:
                query["page"] = (report.page or 0) + 1
            request = {
                "request_id": new_id(),
                "requested_at": format_time(datetime.now(UTC)),
                "project": project or ALL_PROJECTS,
                "view": view,
                "limit": STATUS_MAX_LIMIT,
            }
            report = await self._reader.read(StatusRequested.model_validate(request | query))
            yield report

    async def rows(self, view: StatusView, project: str | None = None, **query: Any) -> list[Any]:
        """All rows of a view; errors as `pages`."""
        found: list[Any] = []
        async for page in self.pages(view, project, **query):
            found += getattr(page, ROWS_OF[view]) or ()
        return found

    async def keyrings(self, project: str | None = None) -> list[ProjectStatus]:
        """All keyrings, or that of one project, compared with their marks.

        One whose mark arrived while it was read is read again. Errors as `pages`.
        """
        found: list[ProjectStatus] = await self.rows("projects", project)
        for number, row in enumerate(found):
            reads = 1
            while self._is_compared and row.mark is row.code is None and reads < _MAX_READS:
                again = await self.rows("projects", row.project)
                row, reads = again[0] if again else row, reads + 1  # noqa: PLW2901  # as read last
                found[number] = row
        return found


def _has_next(report: StatusReported) -> bool:
    if report.view == "objects":
        return report.next is not None
    return (report.page or 1) * STATUS_MAX_LIMIT < (report.total or 0)


@asynccontextmanager
async def open_marks(
    settings: DeploymentSettings, verify_keys: tuple[VerifyKey, ...]
) -> AsyncIterator[MarkStream]:
    """The marks, all of them read, and followed until the block ends.

    Raises:
        CommandError: the stream cannot be read.
    """
    marks = MarkStream(
        BrokerAddress.of(settings),
        settings.deployment,
        verify_keys,
        lease_s=_LEASE_S,
        signing_key=None,
    )
    with _quiet():
        async with following(marks):
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    await marks.load()
            except EventsUnavailableError as exc:
                raise CommandError(str(exc)) from exc
            except TimeoutError as exc:
                raise CommandError(f"{MARKS_STREAM} was not read to its end in time") from exc
            yield marks


@contextmanager
def _quiet() -> Iterator[None]:
    """Log nothing: a command prints its result or one line."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


def shown_time(time: str | None) -> str | None:
    """A time of a message, to the second."""
    return None if time is None else to_seconds(parse_time(time))


def to_seconds(instant: datetime | None) -> str | None:
    """A time as SPEC 1 writes it, to the second."""
    return None if instant is None else f"{format_time(instant).partition('.')[0]}Z"
