"""Points of rotations, sweeps and deletes at which a worker is struck (SPEC 8.1, 8.4 to 8.7).

As `points`: for `crashing` alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any, Final

from keyturn_workers.core.sweep_record import ALL, AllRecord, ProjectRecord
from keyturn_workers.keys.sweep_records import SweepStore
from keyturn_workers.pipeline.amqp.publisher import WorkerPublisher
from keyturn_workers.pipeline.sweep import reconciler
from keyturn_workers.pipeline.sweep.evidence import EvidenceLog
from keyturn_workers.pipeline.sweep.messages import SweepDispatcher
from keyturn_workers.pipeline.sweep.reconciler import Reconciler
from keyturn_workers.pipeline.sweep.starter import SweepStarter
from keyturn_workers.storage.s3 import S3Storage
from tests.acceptance.points import Installed, Point, Stalled

if TYPE_CHECKING:
    from collections.abc import Callable

Arguments = tuple[Any, ...]


def _continues(kind: type) -> Callable[[Arguments], bool]:
    """Changes of a record of this kind whose round, or walk, goes on."""

    def matters(arguments: Arguments) -> bool:
        record = arguments[0]
        return isinstance(record, kind) and record.round is not None  # type: ignore[attr-defined]

    return matters


def _ended(kind: type, *, published: bool = False) -> Callable[[Arguments], bool]:
    """Changes of a record of this kind to one all of whose origins have ended."""

    def matters(arguments: Arguments) -> bool:
        record = arguments[0]
        if not isinstance(record, kind):
            return False
        ends = [origin.end for origin in record.origins]  # type: ignore[attr-defined]
        return all(end is not None and end.published is published for end in ends)

    return matters


def _kept_evidence(arguments: Arguments) -> bool:
    """A change of a record to one that keeps the evidence of a clean end that is being made."""
    record = arguments[0]
    return isinstance(record, ProjectRecord) and record.clean_end is not None


def _wrote(arguments: Arguments) -> bool:
    """A result of an attempt that changed something."""
    return bool(arguments[3].changed)


def _of_all(arguments: Arguments) -> bool:
    """An end of a whole sweep of all."""
    return bool(arguments[0] == ALL)


def _has_parts(arguments: Arguments) -> bool:
    """A change of the record of all to one with parts that are not done."""
    record = arguments[0]
    return isinstance(record, AllRecord) and bool(record.round and record.round.open_parts)


def _begun_a_part(arguments: Arguments) -> bool:
    return any(origin.kind == "part" for origin in arguments[1:])


class AfterResultsApplied:
    """After the results of pages were applied, and before anything came of it."""

    def install(self, strike: Callable[[], None]) -> None:
        original: Any = getattr(reconciler, "apply_results")  # noqa: B009  # it is imported there, not exported

        def apply_results(record: Any, of: Any, results: Any, *arguments: Any) -> Any:
            applied = original(record, of, results, *arguments)
            if results:
                strike()
            return applied

        setattr(reconciler, "apply_results", apply_results)  # noqa: B010  # mypy forbids the assignment


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
    # The first rotation, or sweep, of a project is added.
    "record-created": Point(SweepStore, "create", after=True),
    # A step.
    "step-recorded": Point(SweepStore, "change", after=True, matters=_continues(ProjectRecord)),
    "first-page-sent": Point(SweepDispatcher, "send_page", after=True),
    "results-judged": AfterResultsApplied(),
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
    "keyring-cleared": Point(Reconciler, "_change", after=True),
    "evidence-put": Point(EvidenceLog, "publish", after=True),
    "end-recorded": Point(SweepStore, "change", after=True, matters=_ended(ProjectRecord)),
    "end-published": Point(SweepDispatcher, "publish_end", after=True),
    "results-deleted": Point(SweepStore, "delete_old_results", after=True),
    "end-marked": Point(
        SweepStore, "change", after=True, matters=_ended(ProjectRecord, published=True)
    ),
    # A delete.
    "quietly-put-off": Point(WorkerPublisher, "defer", after=True),
    # A sweep of all.
    "part-begun": Point(SweepStarter, "start", after=True, matters=_begun_a_part),
    "part-ended": Point(SweepStore, "add_part_end", after=True),
    "walk-begun": Point(SweepStore, "change", after=True, matters=_continues(AllRecord)),
    "all-changed": Point(SweepStore, "change", after=True, matters=_has_parts),
    "all-ended": Point(SweepStore, "change", after=True, matters=_ended(AllRecord)),
    "all-end-published": Point(SweepDispatcher, "publish_end", after=True, matters=_of_all),
}
