"""Replays and discards: prepared, confirmed, carried out in the background (SPEC 16.2).

Only the role `operate` gets here. Nothing is moved before a person has confirmed how many letters
that is; where it cannot be undone, by typing the number.
"""

from datetime import UTC, datetime
from typing import Final, cast, get_args

from starlette.datastructures import FormData, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn.messages import REASON_MAX_CHARACTERS
from keyturn_workers.console.auth.person import require_operate
from keyturn_workers.console.auth.requests import local_path
from keyturn_workers.console.dead.index import DeadFilter, DeadIndex, DeadQuery
from keyturn_workers.console.dead.jobs import Job, Move, Plan
from keyturn_workers.console.dead.letters import OBSTACLES, IndexedLetter, digest_number
from keyturn_workers.console.dead.pages import PATH, dead_of, filter_of, filter_words
from keyturn_workers.console.dead.service import PlanGoneError
from keyturn_workers.console.web.rendering import render, see_other

_SELECTED_MAX: Final = 1000


async def read_again(request: Request) -> Response:
    """Read all queues now."""
    require_operate(request)
    dead_of(request).read_again()
    return see_other(PATH)


async def prepare(request: Request) -> Response:
    """Make a plan of what a form selects, and go to its confirmation."""
    person = require_operate(request)
    form = await request.form(max_fields=_SELECTED_MAX + 20)
    move = form.get("move")
    if move not in get_args(Move):
        raise HTTPException(400, "The form says neither replay nor discard.")
    dead = dead_of(request)
    back = local_path(str(form.get("back") or PATH))
    selected, selection = _select(dead.index, form)
    plan = dead.prepare(person.name, cast("Move", move), selected, selection=selection, back=back)
    return see_other(_plan_path(plan))


def _select(index: DeadIndex, form: FormData) -> tuple[list[IndexedLetter], str]:
    if form.get("scope") == "filter":
        texts = {name: value for name, value in form.items() if isinstance(value, str)}
        wanted: DeadFilter = filter_of(QueryParams(texts))
        return list(index.select(DeadQuery(wanted), datetime.now(UTC))), filter_words(wanted)
    letters: list[IndexedLetter] = []
    for chosen in dict.fromkeys(str(value) for value in form.getlist("letter")):
        queue, _, digest = chosen.rpartition("/")
        try:
            letters += index.find(queue, digest_number(digest))
        except ValueError:
            raise HTTPException(400, "A selected letter has no valid digest.") from None
    return letters, "selected"


async def confirm_page(request: Request) -> Response:
    """What is about to be done, to how many letters."""
    person = require_operate(request)
    try:
        plan, job = dead_of(request).plan(request.path_params["plan"], person.name)
    except PlanGoneError:
        return render(request, "dead/plan_gone.html", status_code=404)
    return see_other(job_path(job)) if job is not None else _confirmation(request, plan)


async def confirm(request: Request) -> Response:
    """Carry out a plan, if its number was typed."""
    person = require_operate(request)
    dead = dead_of(request)
    try:
        plan, job = dead.plan(request.path_params["plan"], person.name)
    except PlanGoneError:
        return render(request, "dead/plan_gone.html", status_code=404)
    if job is not None:
        return see_other(job_path(job))
    form = await request.form()
    typed = str(form.get("typed", "")).strip().replace(",", "")
    reason = " ".join(str(form.get("reason", "")).split())
    problem = ""
    if plan.needs_number and typed != str(plan.count):
        problem = f"Type {plan.count} to confirm."
    elif len(reason) > REASON_MAX_CHARACTERS or not reason.isprintable():
        problem = f"A reason is one line of at most {REASON_MAX_CHARACTERS} characters."
    if problem or not plan.count:
        return _confirmation(request, plan, problem=problem, reason=reason, status_code=422)
    return see_other(job_path(dead.start(plan, reason or None)))


def _confirmation(
    request: Request, plan: Plan, *, problem: str = "", reason: str = "", status_code: int = 200
) -> Response:
    return render(
        request,
        "dead/confirm.html",
        status_code=status_code,
        plan=plan,
        path=_plan_path(plan),
        problem=problem,
        reason=reason,
        obstacles=OBSTACLES,
    )


async def show_job(request: Request) -> Response:
    """How far a job is, and what became of it."""
    job = _job(request)
    return render(
        request, "dead/job.html", topics=() if job.has_ended else ("dead",), job=job, path=PATH
    )


async def stop_job(request: Request) -> Response:
    """Move no further letter."""
    require_operate(request)
    job = _job(request)
    dead_of(request).stop(job)
    return see_other(job_path(job))


async def show_jobs(request: Request) -> Response:
    """All jobs since the console was started."""
    return render(request, "dead/jobs.html", topics=("dead",), jobs=dead_of(request).jobs())


def _job(request: Request) -> Job:
    job = dead_of(request).job(request.path_params["job"])
    if job is None:
        raise HTTPException(404, "There is no such job. See the audit trail for what it did.")
    return job


def _plan_path(plan: Plan) -> str:
    return f"/dead/plans/{plan.plan_id}"


def job_path(job: Job) -> str:
    """The page of a job."""
    return f"/dead/jobs/{job.job_id}"


routes = [
    Route("/dead/read", read_again, methods=["POST"]),
    Route("/dead/plans", prepare, methods=["POST"]),
    Route("/dead/plans/{plan}", confirm_page),
    Route("/dead/plans/{plan}", confirm, methods=["POST"]),
    Route("/dead/jobs", show_jobs),
    Route("/dead/jobs/{job}", show_job),
    Route("/dead/jobs/{job}/stop", stop_job, methods=["POST"]),
]
