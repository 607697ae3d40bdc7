"""The census of `keyturn status`: how many objects stand under what (SPEC 8.1, 8.7).

Each object's admin wrap, and each tombstone, is opened; labels are never believed. The
whole bucket is walked through, not the keyrings' projects alone: an object whose keyring
is gone needs its master key all the more. Memory is bounded by kinds, not by objects.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from keyturn.errors import ArchivedObjectError, CodedError, StorageUnavailableError
from keyturn.identifiers import OWN_PREFIX, is_object_key, is_project
from keyturn_workers.cli.output import printable
from keyturn_workers.errors import ArchivedError, MissingError, StorageAnswerError
from keyturn_workers.objects.key_usage import find_key_usage
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.storage import Storage

AT_ONCE: Final = 64
FOREIGN: Final = "foreign"
UNREADABLE: Final = "unreadable"
NONCURRENT: Final = "noncurrent"


@dataclass(frozen=True, slots=True)
class Seen:
    """What objects are counted by.

    `kind` is that of `keyturn_workers.objects.KeyUsage`, `noncurrent` where it is an older version,
    `foreign` or `unreadable`; then `code` says why. `project` is empty outside of projects.
    """

    project: str
    kind: str
    generation: int | None = None
    master_key: str | None = None
    code: str | None = None

    @property
    def order(self) -> tuple[str, str, int, str, str]:
        """For a table: by project and kind, the newest generation first."""
        newest_first = -(self.generation or 0)
        return self.project, self.kind, newest_first, self.master_key or "", self.code or ""


@dataclass(frozen=True, slots=True)
class _Row:
    """One object, or one older version of one."""

    s3_key: str
    version_id: str | None = None


async def take_census(
    storage: Storage,
    keys: OperatorKeys,
    generations: Mapping[str, Sequence[int]],
    *,
    project: str | None = None,
) -> Counter[Seen]:
    """Look at every object of the bucket, or of one project, `AT_ONCE` at a time.

    Args:
        storage: The bucket.
        keys: The operator's.
        generations: Those that each project ever had, as far as its keyring tells.
        project: The only one to look at.

    Raises:
        StorageUnavailableError, StorageAnswerError: an incomplete census would be none.
    """
    found: Counter[Seen] = Counter()
    prefix = "" if project is None else f"{project}/"
    batch: list[_Row] = []

    async def count_batch() -> None:
        looks = (_look(storage, keys, generations, row) for row in batch)
        found.update(seen for seen in await asyncio.gather(*looks) if seen is not None)
        shown.advance(len(batch), batch[-1].s3_key.partition("/")[0])
        batch.clear()

    with _shown() as shown:
        async with shown.counting(storage, prefix):
            async for row in _rows(storage, prefix):
                batch.append(row)
                if len(batch) == AT_ONCE:
                    await count_batch()
            if batch:
                await count_batch()
    return found


async def _rows(storage: Storage, prefix: str) -> AsyncIterator[_Row]:
    """Everything under the prefix but Keyturn's own; older versions too, where they are kept."""
    if not await storage.versioning():
        async for listed in storage.list(prefix):
            if not listed.key.startswith(OWN_PREFIX):
                yield _Row(listed.key)
        return
    async for version in storage.list_versions(prefix):
        if not version.is_delete_marker and not version.key.startswith(OWN_PREFIX):
            yield _Row(version.key, None if version.is_latest else version.version_id)


async def _look(
    storage: Storage, keys: OperatorKeys, generations: Mapping[str, Sequence[int]], row: _Row
) -> Seen | None:
    """What one object stands under; None where it is gone since it was listed."""
    project, _, key = row.s3_key.partition("/")
    if not is_project(project) or not is_object_key(key):
        return Seen(project if is_project(project) else "", FOREIGN)
    try:
        if row.version_id is None:
            head = await storage.head(row.s3_key)
        else:
            head, _ = await storage.read_start(row.s3_key, 1, version_id=row.version_id)
        tried = generations.get(project, ())
        stands = find_key_usage(head.metadata, project, key, keys, tried)
    except MissingError:
        return None
    except ArchivedError:  # an older version's bytes, which its head came with
        return Seen(project, UNREADABLE, code=ArchivedObjectError.code)
    except StorageUnavailableError:
        raise
    except CodedError as exc:
        return Seen(project, UNREADABLE, code=exc.code)
    kind = stands.kind if row.version_id is None else NONCURRENT
    return Seen(project, kind, stands.generation, stands.master_key)


class _Shown:
    """Counts objects on a bar, where there is one."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task = None if progress is None else progress.add_task("", total=None)

    def advance(self, objects: int, project: str) -> None:
        """So many more are looked at."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=objects, description=printable(project))

    @asynccontextmanager
    async def counting(self, storage: Storage, prefix: str) -> AsyncIterator[None]:
        """Meanwhile list how many objects there are: a page of a listing holds a thousand."""
        if self._progress is None:
            yield
            return
        task = asyncio.create_task(self._count(storage, prefix))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _count(self, storage: Storage, prefix: str) -> None:
        count = 0
        try:
            async for row in _rows(storage, prefix):
                count += bool(row)
        except (CodedError, StorageAnswerError):
            return  # a courtesy: the census itself tells what is wrong
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=count)


@contextmanager
def _shown() -> Iterator[_Shown]:
    """A bar on standard error where that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield _Shown(None)
        return
    columns = (
        TextColumn("census: {task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        yield _Shown(progress)
