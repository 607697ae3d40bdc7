"""The report of one sweep for `keyturn status ID`, from its records (SPEC 8.5, 8.6)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from keyturn_workers.cli.bucket import count_objects, open_bucket
from keyturn_workers.cli.record_index import Row, sweep_row, to_seconds
from keyturn_workers.cli.report_keys import open_report_keys
from keyturn_workers.errors import MissingError
from keyturn_workers.settings import OperatorSettings
from keyturn_workers.status.failures_view import last_successor
from keyturn_workers.status.records import RECORD_ERRORS
from keyturn_workers.status.rows import left_s, progress_of, proof_not_before
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import ALL, AllPlan, Plan
from keyturn_workers.sweep.sweep_store import SweepStore

PART_COLUMNS: Final = ("project", "status", "code", "clean", "objects", "rewrapped", "failed")
_FIELDS: Final = (
    *("sweep_id", "kind", "project", "status", "code", "detail", "clean"),
    *("requested_at", "started_at", "ended_at"),
    *("master_key", "encrypt_plaintext", "repair"),
)


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
    settings: OperatorSettings,
    sweep_id: str,
    project: str | None,
    limit: int | None,
    *,
    time_left: bool = False,
) -> SweepReport | None:
    """The report of a sweep; None if it has no records.

    Without `project` it is a sweep of all, or of the first project. `limit` is how many failures
    to list, None for all. The time left needs a count of all objects.

    Raises:
        CorruptObjectError, UnknownMasterKeyError: its plan does not open.
        StorageUnavailableError: the storage does not answer.
    """
    async with (
        open_bucket(settings) as storage,
        open_report_keys(settings, storage, "status") as keys,
    ):
        store, expected = SweepStore(storage, keys), None
        projects = [name async for _, name, _ in store.plans(sweep_id)]
        chosen = project or (ALL if ALL in projects else next(iter(projects), ""))
        plan = await store.find_plan(sweep_id, chosen) if chosen in projects else None
        if plan is None:
            return None
        if isinstance(plan, AllPlan):
            parts, plans, counts = await _read_parts(store, plan)
            document = _document(plan, counts, None) | {"parts": parts}
        else:
            if time_left and plan.status == "running":
                expected = await count_objects(storage, chosen)
            plans, document = [plan], _document(plan, plan.counts, expected)
        failures = await _failures(store, plans, limit)
    document["failures"] = failures[:limit]
    document["more_failures"] = limit is not None and len(failures) > limit
    # The parts of a sweep of all share its id; they are not other sweeps.
    others = () if ALL in projects else tuple(name for name in projects if name != chosen)
    return SweepReport(plan, document, others)


async def _read_parts(
    store: SweepStore, plan: AllPlan
) -> tuple[dict[str, Any], list[Plan], Counts]:
    """The parts (those that ended clean only counted), the plans of the rows, and all counts."""
    sweep_id, clean = plan.ask.sweep_id, 0
    live = [await _read_part(store, sweep_id, project) for project in plan.live]
    not_clean: list[tuple[Row, Plan | None]] = []
    async for project in store.ended_parts(sweep_id):
        if project in plan.live:
            continue
        try:
            ended = await store.look_up_part_result(sweep_id, project)
        except RECORD_ERRORS as exc:
            not_clean.append((_part_row(project=project, code=exc.code), None))
            continue
        if ended is not None and ended.clean:
            clean += 1
        elif ended is not None:
            not_clean.append(await _read_part(store, sweep_id, project))
    document = {
        "ended_clean": clean,
        "live": [row for row, _ in live],
        "ended_not_clean": [row for row, _ in not_clean],
    }
    counts = sum((part.counts for _, part in live if part is not None), plan.sums)
    return document, [part for _, part in live + not_clean if part is not None], counts


async def _read_part(store: SweepStore, sweep_id: str, project: str) -> tuple[Row, Plan | None]:
    """The row of one project's part, and its plan if that opens."""
    try:
        plan = (await store.read(sweep_id, project)).plan
    except MissingError:
        # It failed before it had a plan: its keyring did not open.
        return _part_row(project=project, status="failed"), None
    except RECORD_ERRORS as exc:
        return _part_row(project=project, code=exc.code), None
    return _part_row(**sweep_row(plan)), plan


def _part_row(**values: object) -> Row:
    return {name: values.get(name) for name in PART_COLUMNS}


def _document(plan: Plan | AllPlan, counts: Counts, expected: int | None) -> dict[str, Any]:
    values = asdict(plan.ask) | sweep_row(plan)
    document = {name: values[name] for name in _FIELDS}
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
            "proof_not_before": to_seconds(proof_not_before(plan)),
        }
    document |= {"counts": counts.to_json(), "rate_per_s": None, "left_s": None}
    progress = progress_of(plan, counts, expected)
    if progress is not None:
        rate = progress.rate_per_s
        document["rate_per_s"] = None if rate is None else round(rate, 1)
        document["left_s"] = left_s(plan, progress)
    return document


async def _failures(store: SweepStore, plans: Sequence[Plan], limit: int | None) -> list[Row]:
    """The failures of these sweeps: all, or one more than the limit, to know of more.

    No page of failures is read beyond them.
    """
    rows: list[Row] = []
    for plan in plans:
        row: Row = {"project": plan.ask.project}
        try:
            async for failure in store.failures(await last_successor(store, plan)):
                rows.append(row | {"key": failure.key, "code": failure.code})
                if limit is not None and len(rows) > limit:
                    return rows
        except MissingError:
            continue  # another round began, and these failures are outdated
        except RECORD_ERRORS as exc:
            rows.append(row | {"key": None, "code": exc.code})
    return rows
