"""One sweep as `keyturn status ID` shows it, from its records alone (SPEC 8.5, 8.6).

Failures and parts are read page by page, and no further than they are shown.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from keyturn.errors import CodedError, StorageUnavailableError
from keyturn.identifiers import format_time
from keyturn.messages import SweepProgressed
from keyturn_workers.cli.progress import Pace
from keyturn_workers.cli.record_index import seconds, sweep_row
from keyturn_workers.errors import MissingError
from keyturn_workers.storage import Storage
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import ALL, AllPlan, Plan
from keyturn_workers.sweep.store import SweepStore

FIRST_FAILURES: Final = 20
_MAX_SUCCESSORS: Final = 100
PART_COLUMNS: Final = ("project", "status", "code", "clean", "objects", "rewrapped", "failed")


@dataclass(slots=True)
class Parts:
    """The parts of a sweep of all: how many ended clean, and rows of the others.

    `plans` are those of the rows that have one that opens.
    """

    clean: int = 0
    live: list[dict[str, Any]] = field(default_factory=list)
    not_clean: list[dict[str, Any]] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    live_counts: Counts = field(default_factory=Counts)


@dataclass(frozen=True, slots=True)
class SweepStatus:
    """What is known of one sweep.

    `document` is for people and scripts; `also` names other projects of which a sweep has
    the same id (their publishers made the ids, and nothing forbids it).
    """

    plan: Plan | AllPlan
    document: dict[str, Any]
    also: tuple[str, ...]


async def read_sweep(
    storage: Storage,
    store: SweepStore,
    sweep_id: str,
    *,
    project: str | None = None,
    limit: int | None,
    count_objects: bool,
) -> SweepStatus | None:
    """What the records of a sweep say; None where there are none.

    Args:
        storage: The bucket.
        store: Its records of sweeps.
        sweep_id: The sweep's id, or the rotation's.
        project: Its project, or `*`; by default a sweep of all, or of the first project.
        limit: How many failures are listed; None for all.
        count_objects: Whether to list how many objects there are, for the time left.

    Raises:
        CorruptObjectError, UnknownMasterKeyError: its plan does not open.
        StorageUnavailableError: the storage does not answer.
    """
    of = [name async for _, name, _ in store.plans(sweep_id)]
    if project is not None and project not in of:
        return None
    if not of:
        return None
    of_all = ALL in of if project is None else project == ALL
    chosen = project or of[0]
    parts = Parts()
    plan: Plan | AllPlan
    if of_all:
        plan = (await store.read_all(sweep_id)).plan
        parts = await _parts(store, plan)
        counts, plans = plan.sums + parts.live_counts, parts.plans
    else:
        plan = (await store.read(sweep_id, chosen)).plan
        counts, plans = plan.counts, [plan]
    expected = None
    if count_objects and plan.status == "running" and isinstance(plan, Plan):
        expected = await _count(storage, plan.ask.project)
    document = _document(plan, counts, expected)
    if isinstance(plan, AllPlan):
        document["parts"] = {
            "ended_clean": parts.clean,
            "live": parts.live,
            "ended_not_clean": parts.not_clean,
        }
    document["failures"], document["more_failures"] = await _first(store, plans, limit)
    # The parts of a sweep of all have its id, and are not other sweeps.
    others = () if ALL in of else tuple(name for name in of if name != chosen)
    return SweepStatus(plan, document, also=others)


async def _count(storage: Storage, project: str) -> int:
    count = 0
    async for _ in storage.list(f"{project}/"):
        count += 1
    return count


async def _parts(store: SweepStore, plan: AllPlan) -> Parts:
    parts = Parts()
    for project in plan.live:
        row, of_part = await _part(store, plan.ask.sweep_id, project)
        parts.live.append(row)
        if of_part is not None:
            parts.plans.append(of_part)
            parts.live_counts += of_part.counts
    live = set(plan.live)
    async for project in store.ended_parts(plan.ask.sweep_id):
        if project in live:
            continue
        try:
            ended = await store.read_part_result(plan.ask.sweep_id, project)
        except StorageUnavailableError:
            raise
        except CodedError as exc:
            parts.not_clean.append(_failed_part(project, exc))
            continue
        if ended is None:
            continue  # what stood there was nothing of ours
        if ended.clean:
            parts.clean += 1
            continue
        row, of_part = await _part(store, plan.ask.sweep_id, project)
        parts.not_clean.append(row)
        if of_part is not None:
            parts.plans.append(of_part)
    return parts


async def _part(
    store: SweepStore, sweep_id: str, project: str
) -> tuple[dict[str, Any], Plan | None]:
    try:
        plan = (await store.read(sweep_id, project)).plan
    except MissingError:
        # It failed before it had a plan: its keyring did not open.
        return dict.fromkeys(PART_COLUMNS) | {"project": project, "status": "failed"}, None
    except StorageUnavailableError:
        raise
    except CodedError as exc:
        return _failed_part(project, exc), None
    row = sweep_row(plan)
    return {name: row[name] for name in PART_COLUMNS}, plan


def _failed_part(project: str, error: CodedError) -> dict[str, Any]:
    return dict.fromkeys(PART_COLUMNS) | {"project": project, "code": error.code}


def _document(plan: Plan | AllPlan, counts: Counts, expected: int | None) -> dict[str, Any]:
    row, ask = sweep_row(plan), plan.ask
    named = ("sweep_id", "kind", "project", "status", "code", "detail", "clean")
    document = {name: row[name] for name in named} | {
        "requested_at": ask.requested_at,
        "started_at": seconds(plan.started_at),
        "ended_at": row["ended_at"],
        "master_key": ask.master_key,
        "encrypt_plaintext": ask.encrypt_plaintext,
        "repair": ask.repair,
        "dry_run": ask.dry_run,
    }
    begun = plan.started_at
    if isinstance(plan, Plan):
        begun = plan.turned_at
        document["taken_over_by"] = plan.successor
        document |= _planned(plan)
    document["counts"] = counts.to_json()
    return document | _pace(plan, counts, expected, begun)


def _planned(plan: Plan) -> dict[str, Any]:
    """How far the sweep of one project is planned and proven, and for what state."""
    waiting = [live.not_before for live in plan.live if live.not_before is not None]
    return {
        "proves_generation": plan.state.generation,
        "proves_master_key": plan.state.master_key,
        "round": plan.round,
        "ranges": len(plan.ranges),
        "ranges_planned": sum(keys.planned for keys in plan.ranges),
        "pages": plan.next_page,
        "pages_not_proven": len(plan.live),
        # Nothing seen before this moment proves anything (SPEC 8.4).
        "proof_not_before": seconds(max(waiting, default=None)),
    }


def _pace(
    plan: Plan | AllPlan, counts: Counts, expected: int | None, begun: datetime
) -> dict[str, Any]:
    """The rate since the present state was to be brought about, and what follows from it."""
    if plan.status != "running" or plan.stepped_at is None or plan.stepped_at <= begun:
        return {"rate_per_s": None, "left_s": None}
    pace = Pace()
    pace.expected = expected
    # What the sweep of one project told at both moments, or could have told.
    for at, told in ((begun, Counts()), (plan.stepped_at, counts)):
        fields: dict[str, Any] = {
            "at": format_time(at),
            "sweep_id": plan.ask.sweep_id,
            "project": "all" if plan.ask.project == ALL else plan.ask.project,
            "clean": False,
            **told.to_json(),
        }
        pace.take(SweepProgressed(**fields))
    rate, left = pace.rate_per_s, pace.left
    return {
        "rate_per_s": None if rate is None else round(rate, 1),
        "left_s": None if left is None else max(left.total_seconds(), _until_proof_s(plan)),
    }


def _until_proof_s(plan: Plan | AllPlan) -> float:
    """Seconds from the last step until the last page may be proven, as far as one waits."""
    if isinstance(plan, AllPlan) or plan.stepped_at is None:
        return 0.0
    waiting = [live.not_before for live in plan.live if live.not_before is not None]
    latest = max(waiting, default=plan.stepped_at)
    return max(0.0, (latest - plan.stepped_at).total_seconds())


async def _first(
    store: SweepStore, plans: Sequence[Plan], limit: int | None
) -> tuple[list[dict[str, Any]], bool]:
    """The first failures, and whether there are more."""
    rows: list[dict[str, Any]] = []
    async with aclosing(_failures(store, plans)) as failures:
        async for row in failures:
            if len(rows) == limit:
                return rows, True
            rows.append(row)
    return rows, False


async def _last_successor(store: SweepStore, plan: Plan) -> Plan:
    """The sweep whose end this one's is: itself, but where a later one took it over."""
    for _ in range(_MAX_SUCCESSORS):
        if plan.successor is None:
            break
        plan = (await store.read(plan.successor, plan.ask.project)).plan
    return plan


async def _failures(
    store: SweepStore, plans: Sequence[Plan]
) -> AsyncGenerator[dict[str, Any], None]:
    for plan in plans:
        project = plan.ask.project
        try:
            async for failure in store.failures(await _last_successor(store, plan)):
                yield {"project": project, "key": failure.key, "code": failure.code}
        except MissingError:
            continue  # another round began: these are of no worth any more
        except StorageUnavailableError:
            raise
        except CodedError as exc:
            yield {"project": project, "key": None, "code": exc.code}
