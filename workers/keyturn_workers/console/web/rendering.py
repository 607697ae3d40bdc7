"""Templates: one environment, compiled once, with what every page shows (SPEC 16.2, 16.3).

Autoescape is on for every template, and a name that a template does not know is an error.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from keyturn_workers.console.web import text
from keyturn_workers.console.web.context import context_of
from keyturn_workers.console.web.static_files import StaticFiles


@dataclass(frozen=True, slots=True)
class NavItem:
    """A page in the navigation, with a count of what waits there."""

    path: str
    title: str
    badge: int = 0
    badge_means: str = ""
    is_urgent: bool = False


NAV: Final = (
    NavItem("/", "Now"),
    NavItem("/projects", "Projects"),
    NavItem("/sweeps", "Sweeps"),
    NavItem("/keys", "Master keys"),
    NavItem("/dead", "Dead letters"),
    NavItem("/queues", "Queues and workers"),
    NavItem("/audit", "Audit"),
)


@cache
def static_files() -> StaticFiles:
    """The static files, read at their first use."""
    return StaticFiles()


@cache
def environment() -> Environment:
    """The templates of all pages; each one is compiled at its first use."""
    made = Environment(
        loader=PackageLoader("keyturn_workers.console.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        cache_size=-1,
    )
    for convert in (
        text.visible,
        text.plain,
        text.number,
        text.rate,
        text.duration,
        text.ago,
        text.clock_time,
        text.iso,
    ):
        made.filters[convert.__name__] = convert
    made.globals["static"] = static_files().url
    return made


def render(
    request: Request,
    template: str,
    *,
    status_code: int = 200,
    topics: tuple[str, ...] = (),
    headers: dict[str, str] | None = None,
    **values: object,
) -> Response:
    """Render a page.

    Args:
        request: The request that it answers.
        template: Its path below `templates`.
        status_code: Of the response.
        topics: Of which changes the page refreshes itself; none for a page that must not change
            below a person's hands, such as a confirmation.
        headers: Further response headers.
        values: What the template needs besides `person`, `may_operate`, `csrf`, `nav`, `path`,
            `now`, `feeds` and `topics`.
    """
    context = context_of(request)
    person = context.auth.person_of(request)
    shown = {
        "person": person,
        "may_operate": person is not None and person.role == "operate",
        "csrf": context.auth.csrf_token(request),
        "nav": NAV if person is not None else (),
        "path": request.url.path,
        "feeds": context.model.feeds() if person is not None else (),
        "now": datetime.now(UTC),
        "topics": topics,
        "since": 0,
    }
    page = environment().get_template(template).render(shown | values)
    return HTMLResponse(page, status_code=status_code, headers=headers)


def see_other(url: str) -> Response:
    """What a POST answers: the page that shows its outcome, so that a reload repeats nothing."""
    return RedirectResponse(url, status_code=303)
