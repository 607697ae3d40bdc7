"""Which master keys are in use, for `keyturn status`: a census of the objects (SPEC 8.1, 8.7).

Each admin wrap and each tombstone is opened; labels are never believed. The census covers
the whole bucket, not only enrolled projects: an object without a keyring still needs its
master key. Memory grows with the number of groups, not of objects.

Whether a master key may be dropped is decided in `keyturn_workers.key_usage_rules`.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from keyturn.errors import (
    ArchivedObjectError,
    KeyringRolledBackError,
    PermanentError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import OWN_PREFIX, is_object_key, is_project, keyring_s3_key
from keyturn_workers.cli.bucket import batched, count, optional_task
from keyturn_workers.cli.output import printable, progress_display
from keyturn_workers.cli.record_index import RECORD_ERRORS, RecordIndex, Row
from keyturn_workers.cli.settings import StatusSettings
from keyturn_workers.errors import ArchivedError, MissingError
from keyturn_workers.key_usage_rules import KeyUsage, Surroundings, judge_drop, missing_key
from keyturn_workers.keyring.store import parse_keyring
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.objects.key_usage import find_key_usage
from keyturn_workers.storage import Storage

CONCURRENCY: Final = 64
_NONCURRENT: Final = "noncurrent"
_UNREADABLE: Final = "unreadable"
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


Census = Counter[ObjectGroup]


async def take_census(
    storage: Storage,
    keys: OperatorKeys,
    generations: Mapping[str, Sequence[int]],
    *,
    project: str | None = None,
) -> Census:
    """Inspect every object of the bucket or of one project, `CONCURRENCY` at a time.

    `generations` are all those of each project whose keyring opens.

    Raises:
        StorageUnavailableError, StorageAnswerError, KmsUnavailableError: the census would be
            incomplete.
    """
    census: Census = Counter()
    prefix = "" if project is None else f"{project}/"
    text = TextColumn("census: {task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with progress_display(*columns) as progress:
        bar = progress.add_task("", total=None)

        async def show_total() -> None:
            progress.update(bar, total=await count(_objects(storage, prefix)))

        # A second listing is only worth it if the total is displayed.
        async with optional_task(None if progress.disable else show_total):
            async for batch in batched(_objects(storage, prefix), CONCURRENCY):
                groups = await asyncio.gather(
                    *(_inspect(storage, keys, generations, *listed) for listed in batch)
                )
                census.update(group for group in groups if group is not None)
                name = batch[-1][0].partition("/")[0]
                progress.update(bar, advance=len(batch), description=printable(name))
    return census


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
        keks = await keys.admin_keks(project)
        usage = find_key_usage(
            head.metadata, project, object_key, keks, generations.get(project, ())
        )
    except MissingError:
        return None
    except ArchivedError:  # an older version: its metadata comes with its bytes
        return ObjectGroup(project, _UNREADABLE, code=ArchivedObjectError.code)
    except (PermanentError, UnknownMasterKeyError) as exc:
        return ObjectGroup(project, _UNREADABLE, code=exc.code)
    kind = usage.kind if version_id is None else _NONCURRENT
    return ObjectGroup(project, kind, usage.generation, usage.master_key)


async def mark_rolled_back(
    storage: Storage, keys: OperatorKeys, keyrings: Sequence[Row], census: Census
) -> None:
    """Mark keyrings older than what opens among their project's objects (SPEC 5.4)."""
    highest: defaultdict[str, int] = defaultdict(int)
    for group in census:
        if group.kind != _NONCURRENT:
            highest[group.project] = max(highest[group.project], group.generation or 0)
    for row in keyrings:
        project, newest = row["project"], highest[row["project"]]
        if row["generation"] is None or newest <= row["generation"]:
            continue
        # The project may have been rotated since: only a keyring read after the objects counts.
        try:
            _, body = await storage.read(keyring_s3_key(project))
            now = (await parse_keyring(body, project, keys)).current.generation
        except (MissingError, *RECORD_ERRORS):
            continue
        if newest > now:
            detail = f"an object is at generation {newest}"
            row.update(code=KeyringRolledBackError.code, detail=detail)


def object_rows(census: Census) -> list[Row]:
    """A row for each group of objects, by project and kind, the newest generation first."""
    groups = sorted(
        census,
        key=lambda g: (g.project, g.kind, -(g.generation or 0), g.master_key or "", g.code or ""),
    )
    return [asdict(g) | {"project": g.project or None, "objects": census[g]} for g in groups]


def master_key_rows(
    settings: StatusSettings, index: RecordIndex, census: Census | None, project: str | None
) -> list[Row]:
    """A row for each available master key, and for each missing one that a record names.

    `census` is None if objects were not inspected, `project` the only one that was inspected.
    """
    objects: Counter[str | None] = Counter()
    noncurrent: Counter[str | None] = Counter()
    for group, number in (census or Census()).items():
        (noncurrent if group.kind == _NONCURRENT else objects)[group.master_key] += number
    rows = []
    around = _surroundings(index, census, project)
    active = settings.active_master_key
    for name in settings.master_keys:
        row: Row = {
            "master_key": name,
            "held": True,
            "active": None if active is None else name == active,
            "objects": None if census is None else objects[name],
            "noncurrent": None if census is None else noncurrent[name],
            "keyrings": sum(row["master_key"] == name for row in index.keyrings),
            "sweep_records": index.sweep_records_under[name],
        }
        verdict = judge_drop(_usage(row), around)
        told = f"{name}: {verdict.reason}"
        rows.append(row | {"may_be_dropped": verdict.may_be_dropped, "told": told})
    for name, number in sorted(index.missing_master_keys.items()):
        row = {"master_key": name, "held": False, "may_be_dropped": None}
        rows.append(row | {"told": f"{name}: {missing_key(number)}"})
    return rows


def _usage(row: Row) -> KeyUsage:
    records = row["keyrings"] + row["sweep_records"]
    return KeyUsage(row["objects"], row["noncurrent"] or 0, records, row["active"])


def _surroundings(index: RecordIndex, census: Census | None, project: str | None) -> Surroundings:
    groups = (census or Census()).items()
    return Surroundings(
        running_sweeps=sum(sweep["status"] == "running" for sweep in index.sweeps),
        unreadable_objects=sum(number for group, number in groups if group.kind == _UNREADABLE),
        unreadable_records=index.unreadable,
        project=project,
    )
