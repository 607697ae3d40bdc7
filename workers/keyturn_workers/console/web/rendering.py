"""Templates: one environment, compiled once, with what every page shows (SPEC 16.2, 16.3).

Autoescape is on for every template, and a name that a template does not know is an error.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from keyturn.identifiers import parse_time
from keyturn.messages.audit import AuditAction
from keyturn_workers.console.auth import session_of
from keyturn_workers.console.auth.person import SESSION_SCOPE
from keyturn_workers.console.codes import code_help
from keyturn_workers.console.model import Model
from keyturn_workers.console.web import links, sweep_words, text
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


PAGES: Final = (
    ("/", "Now"),
    ("/projects", "Projects"),
    ("/sweeps", "Sweeps"),
    ("/keys", "Master keys"),
    ("/dead", "Dead letters"),
    ("/queues", "Queues and workers"),
    ("/audit", "Audit"),
)
"""The pages of the navigation."""


AUDIT_ACTIONS: Final[dict[AuditAction, str]] = {
    "request.served": "Request served",
    "request.refused": "Request refused",
    "kek.derived": "Key derived from a master key",
    "object.opened_as_operator": "Object opened with a master key",
    "dead_letter.replayed": "Dead letter replayed",
    "dead_letter.discarded": "Dead letter discarded",
    "project_kek.exported": "Project's key exported",
    "master_key.imported": "Master key imported",
}


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
        text.sentence,
        text.number,
        text.rate,
        text.duration,
        text.ago,
        text.clock_time,
        text.iso,
    ):
        made.filters[convert.__name__] = convert
    made.filters["code_meaning"] = lambda code: code_help(code).meaning
    made.filters["code_remedy"] = lambda code: code_help(code).remedy
    made.filters["audit_action"] = lambda action: AUDIT_ACTIONS.get(action, action)
    made.filters["moment"] = parse_time
    made.filters["project_path"] = links.project_path
    made.filters["sweep_path"] = links.sweep_path
    made.filters["sweep_badge"] = sweep_words.state_badge
    made.filters["sweep_kind"] = sweep_words.kind_words
    made.globals["static"] = static_files().url
    made.globals["zip"] = zip
    return made


def compile_templates() -> None:
    """Compile all templates now, which takes a moment, and not when a person opens a page."""
    for name in environment().list_templates():
        environment().get_template(name)


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
            `now`, `own_publisher`, `feeds`, `topics` and `state`.
    """
    context = context_of(request)
    session = session_of(request) if SESSION_SCOPE in request.scope else None
    shown: dict[str, object] = {
        "person": session and session.person,
        "may_operate": session is not None and session.person.may_operate,
        "csrf": session.csrf if session is not None else "",
        "nav": _nav(context.model) if session is not None else (),
        "path": request.url.path,
        "feeds": context.model.feeds() if session is not None else (),
        "now": context.model.now(),
        "own_publisher": context.model.publisher,
        "topics": topics,
        "state": request.app.state.live.state(),
    }
    page = environment().get_template(template).render(shown | values)
    return HTMLResponse(page, status_code=status_code, headers=headers)


def _nav(model: Model) -> list[NavItem]:
    """The pages, with how much waits on them."""
    overview = model.overview()
    badges = {
        "/": (overview.act, "need attention now", True),
        "/sweeps": (overview.sweeps_running, "running", False),
        "/dead": (overview.dead_letters or 0, "waiting", False),
    }
    nothing = (0, "", False)
    return [NavItem(path, title, *badges.get(path, nothing)) for path, title in PAGES]


def see_other(url: str) -> Response:
    """What a POST answers: the page that shows its outcome, so that a reload repeats nothing."""
    return RedirectResponse(url, status_code=303)
