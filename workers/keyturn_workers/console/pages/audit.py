"""*Audit*: who did what, when and why, and what is wrong with the trail (SPEC 15.3, 16.2)."""

from datetime import UTC, datetime, timedelta
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn.identifiers import format_time, is_project
from keyturn_workers.console.ask import PAGE_ROWS, Query, filled, page_of
from keyturn_workers.console.context import ask
from keyturn_workers.console.rendering import words
from keyturn_workers.console.rendering.templates import REFRESH_S, render

PATH: Final = "/audit"
_OUTCOMES: Final = {"": "Any", "ok": "Done", "not_ok": "Refused"}
_ACTIONS: Final = {"": "Any", **words.AUDIT_ACTIONS}
_NO_TIME: Final = "Not a time, such as 2h or 2026-11-26"
_FIELDS: Final = ("text", "actor", "project", "since", "until")


async def show(request: Request) -> Response:
    """Answer `GET /audit`."""
    params = request.query_params
    now = datetime.now(UTC)
    typed = {name: words.text_of(params, name) for name in _FIELDS}
    moments = {name: moment_of(typed[name], now) for name in ("since", "until")}
    problems = {name: _NO_TIME for name, at in moments.items() if at is None and typed[name]}
    project = typed["project"]
    if project and not is_project(project):
        problems["project"] = "Not a project id"
    action = words.choice_of(params, "action", tuple(_ACTIONS), "")
    outcome = words.choice_of(params, "outcome", tuple(_OUTCOMES), "")
    with_reports = params.get("reports") == "yes"
    query = Query(
        "audit",
        filter=filled(
            text=typed["text"],
            actor=typed["actor"],
            action=action,
            project="" if "project" in problems else project,
            outcome=outcome,
            reports=with_reports,
            **{name: format_time(at) for name, at in moments.items() if at is not None},
        ),
        page=words.page_of(params),
        limit=PAGE_ROWS,
    )
    (answer,) = await ask(request, query)
    report = answer.report
    return render(
        request,
        "audit.html",
        refresh_s=REFRESH_S,
        answer=answer,
        page=report and page_of(report, report.audit_records, query),
        findings=(report and report.findings) or (),
        typed=typed,
        problems=problems,
        action=action,
        outcome=outcome,
        with_reports=with_reports,
        actions=list(_ACTIONS.items()),
        outcomes=list(_OUTCOMES.items()),
        is_filtered=bool(action or outcome or with_reports or any(typed.values())),
        url=lambda number: words.address(PATH, params, page=number),
    )


def moment_of(typed: str, now: datetime) -> datetime | None:
    """Return a moment in UTC as a person types it, such as `2026-11-26 08:30`, or None if invalid.

    A day by itself is its beginning. An age such as `2h` or `30min` is that long ago, to the
    minute, so that a page that refreshes asks the same query.
    """
    typed = typed.strip()
    for unit, seconds in (("min", 60), ("h", 3600), ("d", 86400)):
        count = typed.removesuffix(unit).strip()
        if typed.endswith(unit) and count.isascii() and count.isdigit() and len(count) < 6:  # noqa: PLR2004
            ago = now - timedelta(seconds=int(count) * seconds)
            return ago.replace(second=0, microsecond=0)
    try:
        at = datetime.fromisoformat(typed)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):  # such as the year 1, east of UTC
        return None


routes = [Route(PATH, show)]
