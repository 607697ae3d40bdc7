"""*Audit*: who did what, when and why, and what is wrong with the trail (SPEC 15.3, 16.2)."""

from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn.errors import PublisherError
from keyturn_workers.console.model.rows import AuditQuery
from keyturn_workers.console.web.context import ConsoleContext, context_of
from keyturn_workers.console.web.links import address, choice_of, page_of, text_of
from keyturn_workers.console.web.rendering import AUDIT_ACTIONS, render, see_other

PATH: Final = "/audit"
Outcome = Literal["any", "ok", "not_ok"]
_OUTCOMES: Final[dict[Outcome, str]] = {"any": "Any", "ok": "Done", "not_ok": "Refused"}


async def show(request: Request) -> Response:
    """Answer `GET /audit`; with `older=1` more of the stream is read, then the page is shown."""
    context, params = context_of(request), request.query_params
    if params.get("older") == "1":
        await _read_older(context)
        # Without it: the page asks for itself again whenever something changes.
        return see_other(address(PATH, params, older=None))
    since, until = (
        moment_of(params.get(name, ""), context.model.now()) for name in ("since", "until")
    )
    query = AuditQuery(
        text=text_of(params, "text"),
        action=text_of(params, "action"),
        actor=text_of(params, "actor"),
        project=text_of(params, "project"),
        outcome=choice_of(params, "outcome", Outcome, "any"),
        reports=params.get("reports") == "yes",
        since=since,
        until=until,
        page=page_of(params),
    )
    fields = ("text", "action", "actor", "project", "since", "until")
    return render(
        request,
        "audit.html",
        topics=("audit",),
        query=query,
        page=context.model.audit(query),
        findings=context.model.audit_findings(),
        is_connected=any(
            feed.name == "audit" and feed.is_connected for feed in context.model.feeds()
        ),
        actions=[("", "Any"), *AUDIT_ACTIONS.items()],
        outcomes=list(_OUTCOMES.items()),
        typed={name: text_of(params, name) for name in fields},
        bad_times=[
            name
            for name, value in (("since", since), ("until", until))
            if value is None and text_of(params, name)
        ],
        is_filtered=query.reports
        or query.outcome != "any"
        or any(text_of(params, name) for name in fields),
        url=lambda number: address(PATH, params, page=number, older=None),
        older=address(PATH, params, older=1, page=None),
    )


async def _read_older(context: ConsoleContext) -> None:
    try:
        await context.feeds.request_older_audit()
    except PublisherError as exc:
        raise HTTPException(503, "The audit trail cannot be read now.") from exc


def moment_of(typed: str, now: datetime) -> datetime | None:
    """A moment in UTC as a person types it, such as `2026-11-26 08:30`; None if it is none.

    A day by itself is its beginning. An age such as `2h` or `30min` is that long ago.
    """
    typed = typed.strip()
    for unit, seconds in (("min", 60), ("h", 3600), ("d", 86400)):
        count = typed.removesuffix(unit).strip()
        if typed.endswith(unit) and count.isascii() and count.isdigit() and len(count) < 6:  # noqa: PLR2004
            return now - timedelta(seconds=int(count) * seconds)
    try:
        at = datetime.fromisoformat(typed)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):  # such as the year 1, east of UTC
        return None


routes = [Route(PATH, show)]
