"""The report of one sweep for `keyturn status ID`, from its records (SPEC 8.5, 8.6)."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from keyturn.errors import CodedError, StorageUnavailableError
from keyturn_workers.cli import bucket
from keyturn_workers.cli.progress import SweepProgress
from keyturn_workers.cli.record_index import Row, sweep_row, to_seconds
from keyturn_workers.errors import MissingError
from keyturn_workers.storage import Storage
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import ALL, AllPlan, Plan
from keyturn_workers.sweep.sweep_store import SweepStore

FIRST_FAILURES: Final = 20
PART_COLUMNS: Final = ("project", "status", "code", "clean", "objects", "rewrapped", "failed")
_MAX_SUCCESSORS: Final = 100


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What the records say about one sweep.

    `document` is what the command shows. `other_projects` are projects with another sweep of
    the same id: publishers choose the ids.
    """

    plan: Plan | AllPlan
    document: dict[str, Any]
    other_projects: tuple[str, ...]


async def read_sweep(
    storage: Storage,
    store: SweepStore,
    sweep_id: str,
    *,
    project: str | None = None,
    limit: int | None,
    count_objects: bool,
) -> SweepReport | None:
    """The report of a sweep; None if it has no records.

    Args:
        storage: The bucket.
        store: Its records of sweeps.
        sweep_id: The id of the sweep or rotation.
        project: Its project, or `*`; by default a sweep of all, or of the first project.
        limit: How many failures to list; None for all.
        count_objects: Whether to count the objects, for the time left.

    Raises:
        CorruptObjectError, UnknownMasterKeyError: its plan does not open.
        StorageUnavailableError: the storage does not answer.
    """
    projects = [name async for _, name, _ in store.plans(sweep_id)]
    chosen = project or (ALL if ALL in projects else next(iter(projects), ""))
    plan = await store.find_plan(sweep_id, chosen) if chosen in projects else None
    if plan is None:
        return None
    if isinstance(plan, AllPlan):
        parts, plans, counts = await _read_parts(store, plan)
        document = _document(plan, counts, None) | {"parts": parts}
    else:
        plans, expected = [plan], None
        if count_objects and plan.status == "running":
            expected = await bucket.count_objects(storage, chosen)
        document = _document(plan, plan.counts, expected)
    document["failures"], document["more_failures"] = await _first_failures(store, plans, limit)
    # The parts of a sweep of all share its id; they are not other sweeps.
    others = () if ALL in projects else tuple(name for name in projects if name != chosen)
    return SweepReport(plan, document, others)


async def _read_parts(
    store: SweepStore, plan: AllPlan
) -> tuple[dict[str, Any], list[Plan], Counts]:
    """The parts (those that ended clean only counted), the plans of the rows, and all counts."""
    sweep_id, counts, clean = plan.ask.sweep_id, plan.sums, 0
    live = [await _read_part(store, sweep_id, project) for project in plan.live]
    for _, part in live:
        counts += Counts() if part is None else part.counts
    not_clean: list[tuple[Row, Plan | None]] = []
    live_projects = set(plan.live)
    async for project in store.ended_parts(sweep_id):
        if project in live_projects:
            continue
        try:
            ended = await store.read_part_result(sweep_id, project)
        except StorageUnavailableError:
            raise
        except CodedError as exc:
            not_clean.append((_part_row({"project": project, "code": exc.code}), None))
            continue
        if ended is not None and not ended.clean:
            not_clean.append(await _read_part(store, sweep_id, project))
        clean += ended is not None and ended.clean
    document = {
        "ended_clean": clean,
        "live": [row for row, _ in live],
        "ended_not_clean": [row for row, _ in not_clean],
    }
    return document, [part for _, part in live + not_clean if part is not None], counts


async def _read_part(store: SweepStore, sweep_id: str, project: str) -> tuple[Row, Plan | None]:
    """The row of one project's part, and its plan if that opens."""
    try:
        plan = (await store.read(sweep_id, project)).plan
    except MissingError:
        # It failed before it had a plan: its keyring did not open.
        return _part_row({"project": project, "status": "failed"}), None
    except StorageUnavailableError:
        raise
    except CodedError as exc:
        return _part_row({"project": project, "code": exc.code}), None
    return _part_row(sweep_row(plan)), plan


def _part_row(row: Row) -> Row:
    return {name: row.get(name) for name in PART_COLUMNS}


def _document(plan: Plan | AllPlan, counts: Counts, expected: int | None) -> dict[str, Any]:
    row, request = sweep_row(plan), plan.ask
    names = ("sweep_id", "kind", "project", "status", "code", "detail", "clean")
    document = {name: row[name] for name in names} | {
        "requested_at": request.requested_at,
        "started_at": row["started_at"],
        "ended_at": row["ended_at"],
        "master_key": request.master_key,
        "encrypt_plaintext": request.encrypt_plaintext,
        "repair": request.repair,
        "dry_run": request.dry_run,
    }
    if isinstance(plan, Plan):
        document |= {
            "taken_over_by": plan.successor,
            "proves_generation": plan.state.generation,
            "proves_master_key": plan.state.master_key,
            "round": plan.round,
            "ranges": len(plan.ranges),
            "ranges_planned": sum(keys.planned for keys in plan.ranges),
            "pages": plan.next_page,
            "pages_not_proven": len(plan.live),
            # What was observed earlier proves nothing (SPEC 8.4).
            "proof_not_before": to_seconds(_proof_not_before(plan)),
        }
    return document | {"counts": counts.to_json()} | _rate(plan, counts, expected)


def _proof_not_before(plan: Plan | AllPlan) -> datetime | None:
    """When the last open page may be proven; None if no page waits."""
    pages = plan.live if isinstance(plan, Plan) else ()
    return max((page.not_before for page in pages if page.not_before is not None), default=None)


def _rate(plan: Plan | AllPlan, counts: Counts, expected: int | None) -> dict[str, Any]:
    """The rate since the desired state last changed, and the time left at that rate."""
    begun, stepped = plan.turned_at if isinstance(plan, Plan) else plan.started_at, plan.stepped_at
    if plan.status != "running" or stepped is None or stepped <= begun:
        return {"rate_per_s": None, "left_s": None}
    progress = SweepProgress(expected)
    progress.add(begun, plan.ask.project, Counts())
    progress.add(stepped, plan.ask.project, counts)
    rate, left = progress.rate_per_s, progress.left
    wait_s = ((_proof_not_before(plan) or stepped) - stepped).total_seconds()
    return {
        "rate_per_s": None if rate is None else round(rate, 1),
        "left_s": None if left is None else max(left.total_seconds(), wait_s, 0.0),
    }


async def _first_failures(
    store: SweepStore, plans: Sequence[Plan], limit: int | None
) -> tuple[list[Row], bool]:
    """The first failures, and whether there are more; no page is read beyond them."""
    rows: list[Row] = []
    async with aclosing(_failures(store, plans)) as failures:
        async for row in failures:
            if len(rows) == limit:
                return rows, True
            rows.append(row)
    return rows, False


async def _failures(store: SweepStore, plans: Sequence[Plan]) -> AsyncGenerator[Row, None]:
    for plan in plans:
        project = plan.ask.project
        try:
            async for failure in store.failures(await _last_successor(store, plan)):
                yield {"project": project, "key": failure.key, "code": failure.code}
        except MissingError:
            continue  # another round began, and these failures are outdated
        except StorageUnavailableError:
            raise
        except CodedError as exc:
            yield {"project": project, "key": None, "code": exc.code}


async def _last_successor(store: SweepStore, plan: Plan) -> Plan:
    """The sweep that ends this one: itself, or the last one that took it over."""
    for _ in range(_MAX_SUCCESSORS):
        if plan.successor is None:
            break
        plan = (await store.read(plan.successor, plan.ask.project)).plan
    return plan
