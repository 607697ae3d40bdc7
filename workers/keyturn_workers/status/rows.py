"""Keyrings and sweeps as rows, without any key of theirs (SPEC 8.6, 16.1). Pure."""

from datetime import datetime, timedelta
from typing import Final

from keyturn.errors import CodedError
from keyturn.identifiers import format_time
from keyturn.messages import ProjectStatus, SweepCounts, SweepStatus
from keyturn_workers.keyring import Keyring
from keyturn_workers.status.progress import SweepProgress
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import AllPlan, Plan

_MAX_DETAIL: Final = 500


def project_status(keyring: Keyring) -> ProjectStatus:
    """A keyring as a row."""
    current = keyring.current
    return ProjectStatus(
        project=keyring.project,
        generation=current.generation,
        kek_id=current.kek_id,
        master_key=keyring.master_key,
        plaintext=keyring.plaintext_allowed,
        v0=keyring.v0_allowed,
        earlier_keks=sum(entry.kek is not None for entry in keyring.history),
        enrolled_at=keyring.enrollment.at,
        rotated_at=current.at if keyring.history else None,
        evidence=keyring.evidence,
    )


def unreadable_project(project: str, error: CodedError) -> ProjectStatus:
    """The row of a keyring that does not open."""
    return ProjectStatus(project=project, code=error.code, detail=short_detail(error))


def unreadable_sweep(sweep_id: str, project: str, error: CodedError) -> SweepStatus:
    """The row of a plan that does not open."""
    return SweepStatus(
        sweep_id=sweep_id, project=project, code=error.code, detail=short_detail(error)
    )


def short_detail(error: CodedError) -> str | None:
    """The error's detail, bounded: part of it may come from the bucket."""
    return error.detail[:_MAX_DETAIL] or None


def sweep_status(
    plan: Plan | AllPlan, counts: Counts | None = None, expected: int | None = None
) -> SweepStatus:
    """A sweep as a row.

    Args:
        plan: Its record.
        counts: Its counts; those of the record if None. Of a sweep of all, these are the counts of
            the parts that ended.
        expected: How many objects there are; without it the time left is unknown.
    """
    ask = plan.ask
    counts = counts or counts_of(plan)
    progress = progress_of(plan, counts, expected)
    has_ended = plan.status != "running"
    first = next((origin for origin in plan.origins if origin is not None), None)
    row = SweepStatus(
        sweep_id=ask.sweep_id,
        project=ask.project,
        kind=ask.kind,
        status=plan.status,
        clean=plan.clean if has_ended else None,
        counts=SweepCounts(**counts.to_json()),
        requested_at=ask.requested_at,
        started_at=format_time(plan.started_at),
        ended_at=_time(plan.ended_at) if has_ended else None,
        publisher=None if first is None else first.publisher,
        actor=None if first is None else first.actor,
        part_of_all=ask.of_all,
        master_key=ask.master_key,
        encrypt_plaintext=ask.encrypt_plaintext,
        repair=ask.repair,
        expected_objects=expected,
        rate_per_s=None if progress is None else progress.rate_per_s,
        left_s=None if progress is None else left_s(plan, progress),
    )
    return row.model_copy(update=_failure(plan) | _of_kind(plan))


def counts_of(plan: Plan | AllPlan) -> Counts:
    """The counts so far, by its own record."""
    return plan.counts if isinstance(plan, Plan) else plan.sums


def progress_of(plan: Plan | AllPlan, counts: Counts, expected: int | None) -> SweepProgress | None:
    """The rate since the desired state last changed; None if it does not run, or has not begun."""
    if plan.status != "running" or plan.stepped_at is None:
        return None
    begun = plan.turned_at if isinstance(plan, Plan) else plan.started_at
    progress = SweepProgress(expected)
    progress.add(begun, plan.ask.project, Counts())
    progress.add(plan.stepped_at, plan.ask.project, counts)
    return progress


def left_s(plan: Plan | AllPlan, progress: SweepProgress) -> float | None:
    """Seconds left at this rate, and until a proof is possible; None if unknown."""
    if progress.left is None or plan.stepped_at is None:
        return None
    wait = (proof_not_before(plan) or plan.stepped_at) - plan.stepped_at
    return max(progress.left, wait, timedelta()).total_seconds()


def proof_not_before(plan: Plan | AllPlan) -> datetime | None:
    """What was observed earlier proves nothing (SPEC 8.4)."""
    pages = plan.live if isinstance(plan, Plan) else ()
    return max(filter(None, (page.not_before for page in pages)), default=None)


def _failure(plan: Plan | AllPlan) -> dict[str, str | None]:
    if plan.status != "failed":
        return {}
    return {"code": plan.code or None, "detail": plan.detail[:_MAX_DETAIL] or None}


def _of_kind(plan: Plan | AllPlan) -> dict[str, object]:
    if isinstance(plan, AllPlan):
        return {"parts_ended": plan.projects}
    return {
        "generation": plan.state.generation,
        "proves_master_key": plan.state.master_key,
        "taken_over_by": plan.successor,
        "evidence": plan.evidence,
        "pages": plan.next_page,
        "pages_open": len(plan.live),
    }


def _time(instant: datetime | None) -> str | None:
    return None if instant is None else format_time(instant)
