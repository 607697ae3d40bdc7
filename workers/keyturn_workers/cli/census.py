"""The census of `keyturn status`: how many objects each master key opens (SPEC 8.1, 8.7).

Each admin wrap and each tombstone is opened; labels are never believed. The census covers
the whole bucket, not only enrolled projects: an object without a keyring still needs its
master key. Memory grows with the number of groups, not of objects.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from keyturn.errors import ArchivedObjectError, CodedError, StorageUnavailableError
from keyturn.identifiers import OWN_PREFIX, is_object_key, is_project
from keyturn_workers.cli.bucket import batched, optional_task
from keyturn_workers.cli.output import printable, progress_display
from keyturn_workers.errors import ArchivedError, MissingError
from keyturn_workers.objects.key_usage import find_key_usage
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.storage import Storage

CONCURRENCY: Final = 64
UNREADABLE: Final = "unreadable"
NONCURRENT: Final = "noncurrent"
_FOREIGN: Final = "foreign"


@dataclass(frozen=True, slots=True)
class ObjectGroup:
    """What the census groups objects by.

    `kind` is that of `keyturn_workers.objects.key_usage`, or `noncurrent` for an older version,
    `foreign`, or `unreadable` with the reason in `code`. `project` is empty for a key outside
    of projects.
    """

    project: str
    kind: str
    generation: int | None = None
    master_key: str | None = None
    code: str | None = None

    @property
    def order(self) -> tuple[str, str, int, str, str]:
        """Sorts by project and kind, the newest generation first."""
        newest_first = -(self.generation or 0)
        return self.project, self.kind, newest_first, self.master_key or "", self.code or ""


Census = Counter[ObjectGroup]


async def take_census(
    storage: Storage,
    keys: OperatorKeys,
    generations: Mapping[str, Sequence[int]],
    *,
    project: str | None = None,
) -> Census:
    """Inspect every object of the bucket or of one project, `CONCURRENCY` at a time.

    Args:
        storage: The bucket.
        keys: The operator's.
        generations: All generations of each project whose keyring opens.
        project: The only project to inspect.

    Raises:
        StorageUnavailableError, StorageAnswerError: the census would be incomplete.
    """
    census: Census = Counter()
    prefix = "" if project is None else f"{project}/"
    columns = (
        TextColumn("census: {task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with progress_display(*columns) as progress:
        bar = progress.add_task("", total=None)
        # A second listing is only worth it if the total is displayed.
        counting: AbstractAsyncContextManager[None] = nullcontext()
        if not progress.disable:
            counting = optional_task(_count(storage, prefix, progress, bar))
        async with counting:
            async for batch in batched(_objects(storage, prefix), CONCURRENCY):
                groups = await asyncio.gather(
                    *(_inspect(storage, keys, generations, *listed) for listed in batch)
                )
                census.update(group for group in groups if group is not None)
                name = batch[-1][0].partition("/")[0]
                progress.update(bar, advance=len(batch), description=printable(name))
    return census


async def _count(storage: Storage, prefix: str, progress: Progress, bar: TaskID) -> None:
    """The total for the progress bar: a page of a listing holds a thousand objects."""
    count = 0
    async for _ in _objects(storage, prefix):
        count += 1
    progress.update(bar, total=count)


async def _objects(storage: Storage, prefix: str) -> AsyncIterator[tuple[str, str | None]]:
    """S3 key and version of everything but Keyturn's own; None is the current version."""
    if not await storage.versioning():
        async for listed in storage.list(prefix):
            if not listed.key.startswith(OWN_PREFIX):
                yield listed.key, None
        return
    async for version in storage.list_versions(prefix):
        if not version.is_delete_marker and not version.key.startswith(OWN_PREFIX):
            yield version.key, None if version.is_latest else version.version_id


async def _inspect(
    storage: Storage,
    keys: OperatorKeys,
    generations: Mapping[str, Sequence[int]],
    s3_key: str,
    version_id: str | None,
) -> ObjectGroup | None:
    """The group of one object; None if it was deleted since it was listed."""
    project, _, object_key = s3_key.partition("/")
    if not is_project(project) or not is_object_key(object_key):
        return ObjectGroup(project if is_project(project) else "", _FOREIGN)
    try:
        if version_id is None:
            head = await storage.head(s3_key)
        else:
            head, _ = await storage.read_start(s3_key, 1, version_id=version_id)
        opened = find_key_usage(
            head.metadata, project, object_key, keys, generations.get(project, ())
        )
    except MissingError:
        return None
    except ArchivedError:  # an older version: its metadata comes with its bytes
        return ObjectGroup(project, UNREADABLE, code=ArchivedObjectError.code)
    except StorageUnavailableError:
        raise
    except CodedError as exc:
        return ObjectGroup(project, UNREADABLE, code=exc.code)
    kind = opened.kind if version_id is None else NONCURRENT
    return ObjectGroup(project, kind, opened.generation, opened.master_key)
