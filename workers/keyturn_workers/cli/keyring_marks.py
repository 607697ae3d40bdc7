"""The marks of keyrings as commands read them, and what they say about each project (SPEC 5.5).

A command has no event key of its own here: it follows the stream like a gateway, and adds no marks.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog

from keyturn.crypto import VerifyKey
from keyturn.errors import CodedError, EventsUnavailableError, StorageUnavailableError
from keyturn.identifiers import KEYRINGS_PREFIX, keyring_s3_key
from keyturn.publisher.connection import BrokerAddress
from keyturn.settings import DeploymentSettings
from keyturn.topology import MARKS_STREAM
from keyturn_workers.cli.bucket import batched
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.keyring import Keyring, Mark, MarkState, MarkTable
from keyturn_workers.keyring.mark_stream import MarkStream, following
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.status.records import Opened, Record, open_record, record_of
from keyturn_workers.storage import Storage

_TIMEOUT_S: Final = 60.0
# Nothing is written under it.
_LEASE_S: Final = 15
_CONCURRENCY: Final = 16
_MAX_READS: Final = 8


@dataclass(frozen=True, slots=True)
class MarkedKeyring:
    """One project's keyring, compared with its mark.

    Attributes:
        project: The project.
        state: How they compare.
        found: What the record says; None if there is none.
        changed_at: When the record was put.
        mark: The highest mark, if there is one.
        marked_at: When that was published.
    """

    project: str
    state: MarkState
    found: Mark | None
    changed_at: datetime | None
    mark: Mark | None
    marked_at: datetime | None


WAYS_OUT: Final = {
    MarkState.ROLLED_BACK: "restore the newest record, or `keyturn recover {project}`",
    MarkState.REMOVED: "restore the newest record, or `keyturn enroll {project} --adopt`",
    MarkState.UNKNOWN: "`keyturn recover {project}`, if the broker or the bucket was restored",
}


def way_out(each: MarkedKeyring) -> str:
    """What an operator can do about a keyring that its mark contradicts."""
    return WAYS_OUT[each.state].format(project=each.project)


def marks_by_key(marks: MarkStream, verify_keys: tuple[VerifyKey, ...]) -> dict[str, int]:
    """How many projects' marks each of the event keys signed."""
    earlier = Counter(key_id for key_id, _ in marks.signed_before.values())
    counts = {key.id: earlier[key.id] for key in verify_keys}
    projects = sum(1 for _ in marks.table.projects())
    counts[verify_keys[0].id] = projects - earlier.total()
    return counts


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


async def compare_keyrings(
    storage: Storage, keys: OperatorKeys, table: MarkTable, project: str | None = None
) -> AsyncIterator[MarkedKeyring | tuple[str, CodedError]]:
    """Every keyring with its mark, or that of one project, in the order of the bucket.

    Then the projects whose keyring was removed. For a keyring that does not open: the project, and
    the error.

    Raises:
        StorageUnavailableError, StorageAnswerError: not all of them can be read.
    """
    prefix = KEYRINGS_PREFIX if project is None else keyring_s3_key(project)
    seen = set[str]()
    async for batch in batched(storage.list(prefix), _CONCURRENCY):
        records = [record for row in batch if (record := record_of(row)) is not None]
        seen.update(record.project for record in records)
        for compared in await asyncio.gather(
            *(_read_and_compare(storage, keys, table, record) for record in records)
        ):
            if compared is not None:
                yield compared
    for removed in find_removed(table, seen, project):
        yield removed


def find_removed(
    table: MarkTable, seen: AbstractSet[str], project: str | None
) -> Iterator[MarkedKeyring]:
    """The projects, or the one, that have a mark and are not among those whose keyring was seen."""
    for name in sorted(table.projects()):
        if name not in seen and project in (None, name):
            yield _marked(name, MarkState.REMOVED, None, table)


async def _read_and_compare(
    storage: Storage, keys: OperatorKeys, table: MarkTable, record: Record
) -> MarkedKeyring | tuple[str, CodedError] | None:
    since = table.received
    opened = await open_record(storage, keys, record)
    return await compare_record(storage, keys, table, record, opened, since)


async def compare_record(
    storage: Storage,
    keys: OperatorKeys,
    table: MarkTable,
    record: Record,
    opened: Opened | CodedError | None,
    since: int,
) -> MarkedKeyring | tuple[str, CodedError] | None:
    """One keyring with its mark; None if it is gone and was never marked.

    Args:
        storage: The bucket.
        keys: The operator's keys.
        table: The marks.
        record: The keyring's record.
        opened: What a read of it found. It is read again if a mark arrived meanwhile.
        since: `table.received` before that read began.

    Raises:
        StorageUnavailableError, StorageAnswerError: it cannot be read.
    """
    project = record.project
    for _ in range(_MAX_READS):
        if isinstance(opened, CodedError):
            return project, opened
        state = table.find_state(project, None if opened is None else mark_of(opened), since)
        if state is not None:
            return _marked(project, state, opened, table)
        if opened is None and table.find(project) is None:
            return None
        since = table.received
        opened = await open_record(storage, keys, record)
    raise StorageUnavailableError("a keyring kept changing while it was read")


def mark_of(opened: Opened) -> Mark | None:
    """The state of a keyring's record; None if it is another record."""
    keyring = opened.content
    if not isinstance(keyring, Keyring):
        return None
    return Mark(keyring.serial, opened.digest, keyring.current.generation)


def _marked(
    project: str, state: MarkState, opened: Opened | None, table: MarkTable
) -> MarkedKeyring:
    return MarkedKeyring(
        project=project,
        state=state,
        found=None if opened is None else mark_of(opened),
        changed_at=None if opened is None else opened.changed_at,
        mark=table.find(project),
        marked_at=table.find_date(project),
    )
