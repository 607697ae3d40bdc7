"""Pages: templates with what every page shows, errors in the same shell, static files (SPEC 16).

Autoescape is on for every template, and a name unknown to a template is an error. The URL of a
style sheet or script contains a hash of its content, so a browser never asks again, and an upgrade
takes effect at once.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

import structlog
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from keyturn.identifiers import is_project
from keyturn_workers.console.ask import Answer
from keyturn_workers.console.auth.person import SESSION_SCOPE, session_of
from keyturn_workers.console.context import ATTENTION, QUEUES, ConsoleContext, context_of
from keyturn_workers.console.rendering import text, words
from keyturn_workers.core.wording import plural
from keyturn_workers.process.code_help import CODES, code_help

_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_IMMUTABLE: Final = "public, max-age=31536000, immutable"
_HASH_CHARACTERS: Final = 16


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file as served."""

    body: bytes
    media_type: str
    version: str


class StaticFiles:
    """All files of the package's folder `static` with a type that pages use."""

    def __init__(self) -> None:
        folder = files("keyturn_workers.console.rendering") / "static"
        self._files = dict(_read(folder, ""))

    def url(self, name: str) -> str:
        """Return the address of a file, with its version.

        Raises:
            KeyError: there is no such file.
        """
        return f"/static/{name}?v={self._files[name].version}"

    async def serve(self, request: Request) -> Response:
        """Answer `GET /static/{name}`."""
        file = self._files.get(request.path_params["name"])
        if file is None:
            raise HTTPException(404)
        etag = f'"{file.version}"'
        is_current = request.query_params.get("v") == file.version
        headers = {"ETag": etag, "Cache-Control": _IMMUTABLE if is_current else "no-cache"}
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(file.body, media_type=file.media_type, headers=headers)


def _read(folder: Traversable, prefix: str) -> list[tuple[str, StaticFile]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _read(entry, f"{prefix}{entry.name}/")
            continue
        media_type = _TYPES.get(entry.name.rpartition(".")[2])
        if media_type is not None:
            body = entry.read_bytes()
            version = hashlib.sha256(body).hexdigest()[:_HASH_CHARACTERS]
            found.append((f"{prefix}{entry.name}", StaticFile(body, media_type, version)))
    return found


@dataclass(frozen=True, slots=True)
class NavItem:
    """A page in the navigation, with a count of its waiting items."""

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
REFRESH_S: Final = 5
"""How often an open page asks again."""


@cache
def static_files() -> StaticFiles:
    """Return the static files, read at their first use."""
    return StaticFiles()


@cache
def environment() -> Environment:
    """Return the templates of all pages; each one is compiled at its first use."""
    made = Environment(
        loader=PackageLoader("keyturn_workers.console.rendering"),
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
        text.whole_options,
        text.number,
        text.rate,
        text.duration,
        text.ago,
        text.clock_time,
        text.is_stale,
        text.short_time,
        text.iso,
        text.moment,
        text.evidence_date,
        plural,
        words.audit_action,
        words.audit_outcome,
        words.audit_sentence,
        words.project_path,
        words.project_words,
        words.key_wait_words,
        words.sweep_path,
        words.sweep_badge,
        words.sweep_kind,
        words.sweep_progress,
        words.sweep_moments,
        words.sweep_counts,
        words.sweep_options,
        words.attention_link,
    ):
        made.filters[convert.__name__] = convert
    made.filters["code_meaning"] = lambda code: code_help(code).meaning
    made.filters["code_remedy"] = lambda code: code_help(code).remedy
    made.tests["known_code"] = CODES.__contains__
    made.tests["project_id"] = is_project
    made.globals["static"] = static_files().url
    made.globals["zip"] = zip
    return made


def compile_templates() -> None:
    """Compile all templates at the start, so that nobody's first page waits for it."""
    for name in environment().list_templates():
        environment().get_template(name)


def render(
    request: Request,
    template: str,
    *,
    status_code: int = 200,
    refresh_s: int = 0,
    headers: dict[str, str] | None = None,
    **values: object,
) -> Response:
    """Render a page.

    Args:
        request: The request.
        template: The path below `templates`.
        status_code: Of the response.
        refresh_s: How often the page asks for itself; 0 for a page that must not change while a
            person uses it, such as a confirmation.
        headers: Further response headers.
        values: Values for the template besides `person`, `may_operate`, `csrf`, `nav`, `path`,
            `now`, `as_of`, `own_publisher`, `header`, `refresh_s`, `theme`, `deployment` and
            `color`.
    """
    context = context_of(request)
    session = session_of(request) if SESSION_SCOPE in request.scope else None
    now = datetime.now(UTC)
    shown: dict[str, object] = {
        "person": session and session.person,
        "may_operate": session is not None and session.person.may_operate,
        "csrf": session.csrf if session is not None else "",
        "nav": _nav(context) if session is not None else (),
        "header": context.asker.peek(ATTENTION),
        "path": request.url.path,
        "now": now,
        "as_of": _as_of(values.values(), now),
        "own_publisher": context.publisher_name,
        "refresh_s": refresh_s,
        "theme": _theme(request),
        "deployment": context.deployment,
        "color": context.color,
    }
    page = environment().get_template(template).render(shown | values)
    return HTMLResponse(page, status_code=status_code, headers=headers)


def _as_of(values: Iterable[object], now: datetime) -> datetime | None:
    """Return the age of a page: of its oldest answer that does not show its own."""
    known = [each.at for each in values if isinstance(each, Answer) and each.at is not None]
    fresh = [at for at in known if not text.is_stale(at, now)]
    return min(fresh or known, default=None)


def _theme(request: Request) -> str:
    """Return the theme chosen in this browser by the page's script; empty: the system's."""
    chosen = request.cookies.get("__Host-keyturn-theme", "")
    return chosen if chosen in ("light", "dark") else ""


def _nav(context: ConsoleContext) -> list[NavItem]:
    """Return the pages, with the number of items that wait on them."""
    attention = context.asker.peek(ATTENTION).report
    queues = context.asker.peek(QUEUES).report
    items = (attention and attention.attention) or ()
    dead = sum(row.dead or 0 for row in (queues and queues.queues) or ())
    badges = {
        "/": (
            len({item.rule for item in items if item.severity == "act"}),
            "need attention now",
            True,
        ),
        "/dead": (dead, "waiting", False),
    }
    nothing = (0, "", False)
    return [NavItem(path, title, *badges.get(path, nothing)) for path, title in PAGES]


def see_other(url: str) -> Response:
    """Redirect a POST to the page with its outcome, so that a reload repeats nothing."""
    return RedirectResponse(url, status_code=303)


_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Text:
    title: str
    what: str
    remedy: str


_TEXTS: Final = {
    400: _Text(
        "This request is malformed",
        "The console cannot read it. Nothing was changed.",
        "Go back, reload the page and try again.",
    ),
    403: _Text(
        "Not allowed",
        "Nothing was changed.",
        "Actions need the role “operate”. If you sent a form, reload its page and send it again.",
    ),
    404: _Text(
        "Not found",
        "This page does not exist, or its content is gone.",
        "Check the address, or start from a page in the navigation.",
    ),
    405: _Text(
        "Method not allowed",
        "This address does not accept this kind of request. Nothing was changed.",
        "Open the page again and use its form.",
    ),
    413: _Text(
        "This form is too large",
        "The console did not read it. Nothing was changed.",
        "Enter less text.",
    ),
    415: _Text(
        "This is not a form",
        "The console accepts only the forms of its own pages. Nothing was changed.",
        "Open the page again and use its form.",
    ),
    503: _Text(
        "Not available now",
        "A component that this page needs does not respond.",
        "Try again in a moment. If this persists, see the console's log.",
    ),
}
_UNKNOWN: Final = _Text(
    "Something went wrong",
    "The console failed to build this page.",
    "Try again. See the console's log for the error.",
)


async def http_error_page(request: Request, error: Exception) -> Response:
    """Return the page of an `HTTPException`; shows its `detail` if that adds to its status."""
    known = error if isinstance(error, HTTPException) else HTTPException(500)
    status = known.status_code
    return render(
        request,
        "error.html",
        status_code=status,
        headers=dict(known.headers or {}),
        status=status,
        text=_TEXTS.get(status, _UNKNOWN),
        detail="" if known.detail == HTTPStatus(status).phrase else known.detail,
    )


async def server_error_page(request: Request, error: Exception) -> Response:
    """Return the page of an unexpected error. Its text stays in the log."""
    # uvicorn would log it, but its messages are off: they contain paths.
    _log.error("a request failed", exc_info=error)
    return await http_error_page(request, error)
