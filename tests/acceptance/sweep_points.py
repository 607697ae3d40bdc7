"""Points of rotations, sweeps and deletes at which a worker is struck (SPEC 8.1, 8.4 to 8.7).

As `points`: for `crashing` alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any, Final

from keyturn_workers.amqp import WorkerPublisher
from keyturn_workers.storage.s3 import S3Storage
from keyturn_workers.sweep import SweepDispatcher, SweepStarter, SweepStore, project_sweep
from keyturn_workers.sweep.evidence_log import EvidenceLog
from keyturn_workers.sweep.plan import AllPlan, Plan
from keyturn_workers.sweep.project_sweep import ProjectSweep
from tests.acceptance.points import Installed, Point, Stalled

if TYPE_CHECKING:
    from collections.abc import Callable

Arguments = tuple[Any, ...]


def _changed_to(kind: type, status: str, *, told: bool = False) -> Callable[[Arguments], bool]:
    """Changes of a sweep's record to this status."""

    def matters(arguments: Arguments) -> bool:
        plan = arguments[0]
        return isinstance(plan, kind) and (plan.status, plan.told) == (status, told)  # type: ignore[attr-defined]

    return matters


def _kept_evidence(arguments: Arguments) -> bool:
    """A change of a sweep's record to one that keeps the evidence of its end."""
    plan = arguments[0]
    return isinstance(plan, Plan) and plan.status == "running" and plan.envelope is not None


def _wrote(arguments: Arguments) -> bool:
    """A result of an attempt that changed something."""
    return bool(arguments[2].changed)


def _proved(arguments: Arguments) -> bool:
    """The results of proven pages are deleted."""
    return bool(tuple(arguments[1]))


def _of_all(arguments: Arguments) -> bool:
    """An end of a whole sweep of all."""
    return isinstance(arguments[0], AllPlan)


def _begun_a_part(arguments: Arguments) -> bool:
    return bool(arguments[0].of_all)


class AfterResultsApplied:
    """After the results of pages were applied, and before anything came of it."""

    def install(self, strike: Callable[[], None]) -> None:
        original: Any = getattr(project_sweep, "apply_results")  # noqa: B009  # it is imported there, not exported

        def apply_results(plan: Any, results: Any, *arguments: Any) -> Any:
            applied = original(plan, results, *arguments)
            if results:
                strike()
            return applied

        setattr(project_sweep, "apply_results", apply_results)  # noqa: B010  # mypy forbids the assignment


class Terminated:
    """Sent SIGTERM, once, right after a copy; where it hangs, that copy never answers."""

    def __init__(self, *, hangs: bool) -> None:
        self._hangs = hangs

    def install(self, strike: Callable[[], None]) -> None:
        del strike
        original: Any = S3Storage.copy_onto_itself
        struck: list[bool] = []

        async def copy_onto_itself(this: S3Storage, *arguments: Any, **named: Any) -> None:
            await original(this, *arguments, **named)
            if not struck:
                struck.append(True)
                os.kill(os.getpid(), signal.SIGTERM)
                if self._hangs:
                    await asyncio.Event().wait()

        setattr(S3Storage, "copy_onto_itself", copy_onto_itself)  # noqa: B010  # as above


SWEEP_POINTS: Final[dict[str, Installed]] = {
    # A rotation, or a sweep, is begun.
    "sweep-recorded": Point(SweepStore, "create", after=True),
    # A step.
    "plan-changed": Point(SweepStore, "change", after=True, matters=_changed_to(Plan, "running")),
    "first-page-sent": Point(SweepDispatcher, "send_page", after=True),
    "results-judged": AfterResultsApplied(),
    "proven-before-forgotten": Point(SweepStore, "delete_page_results", matters=_proved),
    # A page.
    "copy-before": Point(S3Storage, "copy_onto_itself"),
    "copied-first": Point(S3Storage, "copy_onto_itself", after=True),
    "copied-all": Point(SweepStore, "add_result", matters=_wrote),
    "page-recorded": Point(SweepStore, "add_result", after=True, matters=_wrote),
    "tags-dropped": Point(S3Storage, "write_tags"),
    "copy-stalled": Stalled("copy_onto_itself"),
    "copy-terminated": Terminated(hangs=False),
    "copy-hanging": Terminated(hangs=True),
    # The end.
    "evidence-kept": Point(SweepStore, "change", after=True, matters=_kept_evidence),
    "keyring-cleared": Point(ProjectSweep, "_change", after=True),
    "evidence-put": Point(EvidenceLog, "publish", after=True),
    "plan-done": Point(SweepStore, "change", after=True, matters=_changed_to(Plan, "done")),
    "end-published": Point(SweepDispatcher, "publish_end", after=True),
    "end-recorded": Point(
        SweepStore, "change", after=True, matters=_changed_to(Plan, "done", told=True)
    ),
    # A delete.
    "quietly-put-off": Point(WorkerPublisher, "defer", after=True),
    # A sweep of all.
    "part-begun": Point(SweepStarter, "start", after=True, matters=_begun_a_part),
    "part-ended": Point(SweepStore, "add_part_result", after=True),
    "all-changed": Point(SweepStore, "change", after=True, matters=_changed_to(AllPlan, "running")),
    "all-end-published": Point(SweepDispatcher, "publish_end", after=True, matters=_of_all),
    "all-done": Point(SweepStore, "change", after=True, matters=_changed_to(AllPlan, "done")),
}
