"""The keys of a page, as the bucket shows them now (SPEC 8.5, 8.6).

A page may have grown since it was planned: keys come in batches, so that memory stays
bounded. On a versioned bucket each key comes with its noncurrent versions.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from keyturn.identifiers import object_s3_key
from keyturn_workers.storage import ObjectVersion, Storage


@dataclass(slots=True)
class Row:
    """One key of the project; `stands` is False where its newest version is a delete marker.

    `noncurrent` are the ids of its older versions, delete markers not among them.
    """

    key: str
    stands: bool = True
    noncurrent: list[str] = field(default_factory=list)


async def batches(
    storage: Storage, project: str, after: str, last: str, *, versioned: bool, size: int
) -> AsyncIterator[list[Row]]:
    """The rows after `after` up to and including `last` (empty: to the end), `size` at a time."""
    batch: list[Row] = []
    rows = (
        _versioned(storage, project, after) if versioned else _plain(storage, project, after, size)
    )
    async for row in rows:
        if last and row.key.encode() > last.encode():
            break
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


async def _plain(storage: Storage, project: str, after: str, size: int) -> AsyncIterator[Row]:
    prefix = f"{project}/"
    start = object_s3_key(project, after) if after else ""
    while True:
        # One more than a page holds, which shows that it is over: servers give 1,000 else,
        # and reading what is not looked at costs time.
        rows = [row async for row in storage.list(prefix, after=start, limit=size + 1)]
        for row in rows:
            yield Row(row.key.removeprefix(prefix))
        if len(rows) <= size:
            return
        start = rows[-1].key


async def _versioned(storage: Storage, project: str, after: str) -> AsyncIterator[Row]:
    prefix = f"{project}/"
    start = object_s3_key(project, after) if after else ""
    row: Row | None = None
    async for version in storage.list_versions(prefix, after=start):
        key = version.key.removeprefix(prefix)
        if row is None or row.key != key:
            if row is not None:
                yield row
            row = Row(key, stands=False)
        _add(row, version)
    if row is not None:
        yield row


def _add(row: Row, version: ObjectVersion) -> None:
    if version.is_latest:
        row.stands = not version.is_delete_marker
    elif not version.is_delete_marker:
        row.noncurrent.append(version.version_id)
