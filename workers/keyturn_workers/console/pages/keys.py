"""*Master keys*: what depends on each, and the rotation to another (SPEC 8.1, 16.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn.identifiers import parse_time
from keyturn.messages.status import SweepStatus, WorkerStatus
from keyturn_workers.console.ask import Query, filled
from keyturn_workers.console.auth.person import require_operate
from keyturn_workers.console.context import ask, context_of
from keyturn_workers.console.key_usage import Census, KeyRow, key_rows
from keyturn_workers.console.pages.queues import is_present
from keyturn_workers.console.rendering.templates import REFRESH_S, render, see_other

_KEYS: Final = Query("master_keys")
_SWEEPS: Final = Query("sweeps", filter=filled(kind="sweep"))
_RUNNING: Final = Query("sweeps", filter=filled(state="running"), limit=1)
_WORKERS: Final = Query("workers")


async def show(request: Request) -> Response:
    """Answer `GET /keys`."""
    answer, sweeps, running, workers = await ask(request, _KEYS, _SWEEPS, _RUNNING, _WORKERS)
    census = context_of(request).census
    rows = key_rows(
        (answer.report and answer.report.master_keys) or (),
        census.complete,
        running_sweeps=None if running.report is None else running.report.total,
        is_complete=answer.report is not None and answer.report.is_complete is not False,
    )
    of_all = [row for row in (sweeps.report and sweeps.report.sweeps) or () if row.project == "*"]
    return render(
        request,
        "keys.html",
        refresh_s=REFRESH_S,
        answer=answer,
        keys=rows,
        census=census,
        rotation=key_rotation(
            rows, (workers.report and workers.report.workers) or (), of_all, census.complete
        ),
    )


async def count(request: Request) -> Response:
    """Count what depends on each key, in the background. Nothing in the bucket changes."""
    person = require_operate(request)
    context_of(request).census.start(person.name)
    return see_other("/keys#census")


async def cancel(request: Request) -> Response:
    """Stop counting; the partial count is kept."""
    require_operate(request)
    context_of(request).census.cancel()
    return see_other("/keys#census")


StepState = Literal["done", "next", "later"]
_DROP_TEXT: Final = (
    "Remove it from KEYTURN_MASTER_KEYS of every worker and gateway, and restart them. Keep it "
    "for as long as you keep backups that it opens."
)


@dataclass(frozen=True, slots=True)
class Step:
    """A step: what to do, its state, and the reason for that state."""

    title: str
    state: StepState
    detail: str
    command: str | None = None


@dataclass(frozen=True, slots=True)
class KeyRotation:
    """A rotation to the active master key.

    `is_under_way` is true if anything was, or still is, under another available key.
    """

    active: str | None
    is_under_way: bool
    steps: tuple[Step, ...]


def key_rotation(
    keys: Sequence[KeyRow],
    workers: Sequence[WorkerStatus],
    sweeps: Sequence[SweepStatus],
    census: Census | None,
) -> KeyRotation:
    """Return how far this deployment's rotation is.

    `workers` are all processes that report, `sweeps` those of all projects, newest first, and
    `census` is the newest complete count.
    """
    held = [row for row in keys if row.status is not None]
    active = next((row.master_key for row in held if row.is_active), None)
    old = tuple(row.master_key for row in held if not row.is_active)
    swept = _clean_sweep(sweeps, active)
    # A second key without any use so far was only given to the processes.
    used = any(row.is_used for row in held if not row.is_active)
    is_under_way = bool(old) and (used or swept is not None)
    unused = {row.master_key for row in held if row.safe_to_drop}
    done = (
        bool(old),
        active is not None and is_under_way and _all_agree(workers, active),
        swept is not None and not any(row.projects for row in held if not row.is_active),
        bool(old) and unused.issuperset(old),
        False,
    )
    texts = (
        _held_text(held, workers),
        _active_text(active, workers, () if is_under_way else old),
        _sweep_text(swept, active),
        _census_text(old, unused, census),
        _DROP_TEXT,
    )
    titles = (
        "Give every worker and gateway a second master key",
        "Make the new one active, so that new projects begin under it",
        "Sweep all projects to it, to a clean end",
        "Count again: no object, no older version and no record uses the old one",
        "Drop the old one",
    )
    commands = ("keyturn keygen master-key --id m2 -o m2.env", None, None, None, None)
    first_open = next(index for index, each in enumerate(done) if not each)
    steps = tuple(
        Step(
            title,
            "done" if is_done else "next" if index == first_open else "later",
            text,
            command if index == first_open else None,
        )
        for index, (title, is_done, text, command) in enumerate(
            zip(titles, done, texts, commands, strict=True)
        )
    )
    return KeyRotation(active, is_under_way, steps)


def _present(workers: Sequence[WorkerStatus]) -> list[WorkerStatus]:
    return [worker for worker in workers if is_present(worker)]


def _all_agree(workers: Sequence[WorkerStatus], active: str) -> bool:
    present = _present(workers)
    return bool(present) and all(each.active_master_key == active for each in present)


def _clean_sweep(sweeps: Sequence[SweepStatus], active: str | None) -> SweepStatus | None:
    """Return the newest clean sweep of all projects to the active key."""
    return next((row for row in sweeps if row.clean and row.master_key == active), None)


def _held_text(held: Sequence[KeyRow], workers: Sequence[WorkerStatus]) -> str:
    names = {row.master_key for row in held}
    lacking = [each for each in _present(workers) if not names <= set(each.master_keys)]
    words = f"Held: {', '.join(sorted(names)) or 'not known yet'}."
    if lacking:
        hosts = ", ".join(sorted({each.host for each in lacking}))
        words += f" Not all workers have all of them yet: {hosts}."
    return f"{words} Gateways do not report their keys: check them yourself."


def _active_text(active: str | None, workers: Sequence[WorkerStatus], spare: Sequence[str]) -> str:
    reported = sorted({each.active_master_key for each in _present(workers)})
    if len(reported) > 1:
        return f"Workers disagree: {', '.join(reported)}. Restart those with the earlier setting."
    words = f"Active: {active or 'not known yet'}."
    return f"{words} Held, with no project under it: {', '.join(spare)}." if spare else words


def _sweep_text(swept: SweepStatus | None, active: str | None) -> str:
    if swept is None or swept.ended_at is None:
        return f"No clean sweep of all projects to {active or 'the active key'} is known."
    return f"The last one ended clean at {parse_time(swept.ended_at):%Y-%m-%d %H:%M} UTC."


def _census_text(old: Sequence[str], unused: set[str], census: Census | None) -> str:
    if census is None or census.ended_at is None:
        return "The bucket has not been counted yet."
    still = [name for name in old if name not in unused]
    counted = f"Counted at {census.ended_at:%Y-%m-%d %H:%M} UTC"
    return (
        f"{counted}; still in use or not certain: {', '.join(still)}." if still else f"{counted}."
    )


routes = [
    Route("/keys", show),
    Route("/keys/count", count, methods=["POST"]),
    Route("/keys/count/cancel", cancel, methods=["POST"]),
]
