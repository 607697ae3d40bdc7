"""Which master keys are in use, for `keyturn status`: a census of the objects (SPEC 8.1, 8.7).

`keyturn_workers.status.census` finds what one object depends on. Memory grows with the number of
groups, not of objects.

Whether a master key may be dropped is decided in `keyturn_workers.key_usage_rules`.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from keyturn.errors import KeyringRolledBackError
from keyturn_workers.cli.bucket import batched, count, optional_task
from keyturn_workers.cli.output import printable, progress_display
from keyturn_workers.cli.record_index import RecordIndex, Row
from keyturn_workers.cli.settings import StatusSettings
from keyturn_workers.key_usage_rules import KeyUsage, Surroundings, judge_drop, missing_key
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.status.census import (
    NONCURRENT,
    UNREADABLE,
    Census,
    ObjectInspector,
    find_rolled_back,
    list_objects,
)
from keyturn_workers.storage import Storage

CONCURRENCY: Final = 64


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

    async def of_project(project: str) -> Sequence[int]:
        return generations.get(project, ())

    census: Census = Counter()
    inspector = ObjectInspector(storage, keys, of_project)
    prefix = "" if project is None else f"{project}/"
    text = TextColumn("census: {task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with progress_display(*columns) as progress:
        bar = progress.add_task("", total=None)

        async def show_total() -> None:
            progress.update(bar, total=await count(list_objects(storage, prefix)))

        # A second listing is only worth it if the total is displayed.
        async with optional_task(None if progress.disable else show_total):
            async for batch in batched(list_objects(storage, prefix), CONCURRENCY):
                groups = await asyncio.gather(*(inspector.inspect(*listed) for listed in batch))
                census.update(group for group in groups if group is not None)
                name = batch[-1][0].partition("/")[0]
                progress.update(bar, advance=len(batch), description=printable(name))
    return census


async def mark_rolled_back(
    storage: Storage, keys: OperatorKeys, keyrings: Sequence[Row], census: Census
) -> None:
    """Mark keyrings older than what opens among their project's objects (SPEC 5.4)."""
    opened = {row["project"]: row["generation"] for row in keyrings if row["generation"]}
    newest = await find_rolled_back(storage, keys, opened, census)
    for row in keyrings:
        if row["project"] in newest:
            detail = f"an object is at generation {newest[row['project']]}"
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
        (noncurrent if group.kind == NONCURRENT else objects)[group.master_key] += number
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
        unreadable_objects=sum(number for group, number in groups if group.kind == UNREADABLE),
        unreadable_records=index.unreadable,
        project=project,
    )
