"""The object keys of a page, as the bucket lists them now (SPEC 8.5, 8.6).

A page may have grown since it was added to the record, so keys come in batches and memory stays
bounded. On a versioned bucket each key comes with its noncurrent versions.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from keyturn.identifiers import object_s3_key
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import ObjectVersion


@dataclass(slots=True)
class Row:
    """One object key of the project.

    `exists` is False if the newest version is a delete marker. `noncurrent` are the ids of the
    older versions, without delete markers.
    """

    key: str
    exists: bool = True
    noncurrent: list[str] = field(default_factory=list)


async def list_batches(
    storage: Storage, project: str, after: str, last: str, *, versioned: bool, size: int
) -> AsyncIterator[list[Row]]:
    """The rows after `after` up to and including `last`, `size` at a time.

    An empty `last` is the end of the project.
    """
    batch: list[Row] = []
    rows = (
        _versioned(storage, project, after)
        if versioned
        else _unversioned(storage, project, after, size)
    )
    order = storage.capabilities.order
    async for row in rows:
        if last and order(row.key) > order(last):
            break
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


async def _unversioned(storage: Storage, project: str, after: str, size: int) -> AsyncIterator[Row]:
    prefix = f"{project}/"
    start = object_s3_key(project, after) if after else ""
    while True:
        # One row more than a batch shows if the batch is the last. Without a limit servers return
        # 1,000 keys, and reading unneeded keys costs time.
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
            row = Row(key, exists=False)
        _add(row, version)
    if row is not None:
        yield row


def _add(row: Row, version: ObjectVersion) -> None:
    if version.is_latest:
        row.exists = not version.is_delete_marker
    elif not version.is_delete_marker:
        row.noncurrent.append(version.version_id)
