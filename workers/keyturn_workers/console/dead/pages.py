"""*Dead letters*: counted by code, filtered, and one by one (SPEC 16.2)."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, get_args

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn.topology import DEAD_QUEUES
from keyturn_workers.console.dead.index import NO_CODE, Age, DeadFilter, DeadQuery, Sort
from keyturn_workers.console.dead.letters import OBSTACLES, IndexedLetter, digest_number
from keyturn_workers.console.dead.service import DeadLetters
from keyturn_workers.console.web.context import context_of
from keyturn_workers.console.web.links import address, choice_of, page_of, text_of
from keyturn_workers.console.web.rendering import render

PATH: Final = "/dead"
AGES: Final[dict[Age, str]] = {
    "": "Any",
    "hour": "Within an hour",
    "day": "Within a day",
    "week": "Within a week",
    "over_day": "Older than a day",
    "over_week": "Older than a week",
}
# How long a page waits for a letter before it is shown without its body.
_DETAILS_WAIT_S: Final = 2.0
_JOBS_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class SortLink:
    """The address that sorts by a column; the other way round if it is sorted by it now."""

    url: str
    is_now: bool
    descending: bool


def dead_of(request: Request) -> DeadLetters:
    """The dead letters of this console."""
    dead: DeadLetters = context_of(request).dead
    return dead


def filter_of(params: QueryParams) -> DeadFilter:
    """What an address or a form asks for."""
    queue = text_of(params, "queue")
    if queue and not queue.endswith(".dead"):
        queue = f"{queue}.dead"
    return DeadFilter(
        queue=queue if queue in DEAD_QUEUES else "",
        code=text_of(params, "code"),
        type=text_of(params, "type"),
        project=text_of(params, "project"),
        publisher=text_of(params, "publisher"),
        age=choice_of(params, "age", Age, ""),
        text=text_of(params, "text"),
    )


def filter_words(wanted: DeadFilter) -> str:
    """A filter in words, for people who confirm what it selects."""
    named = {
        "queue": wanted.queue,
        "code": wanted.code,
        "type": wanted.type,
        "project": wanted.project,
        "publisher": wanted.publisher,
        "age": AGES[wanted.age].lower() if wanted.age else "",
        "text": wanted.text,
    }
    words = [f"{name}: {value}" for name, value in named.items() if value]
    return f"all with {', '.join(words)}" if words else "all of all queues"


async def show(request: Request) -> Response:
    """Answer `GET /dead`."""
    params = request.query_params
    sort: Sort = choice_of(params, "sort", Sort, "since")
    default = "desc" if sort in ("since", "size") else "asc"
    order = params.get("order", default)
    query = DeadQuery(filter_of(params), sort, order == "desc", page_of(params))
    dead = dead_of(request)
    index = dead.index
    now = datetime.now(UTC)
    page = index.page(query, now)
    codes = sorted({row.code for row in index.counts})
    return render(
        request,
        "dead/letters.html",
        topics=("dead",),
        query=query,
        page=page,
        keys=row_keys(page.rows),
        index=index,
        reading=dead.reading,
        counts=index.counts,
        is_filtered=query.filter != DeadFilter(),
        queues=[("", "Any"), *((queue, queue) for queue in DEAD_QUEUES)],
        codes=[("", "Any"), *((code, code) for code in codes)],
        ages=list(AGES.items()),
        obstacles=OBSTACLES,
        jobs=dead.jobs()[:_JOBS_SHOWN],
        no_code=NO_CODE,
        sorts={name: _sort_link(params, query, name) for name in get_args(Sort)},
        url=lambda number: address(PATH, params, page=number),
        here=address(PATH, params),
        code_url=lambda row: address(PATH, QueryParams(), queue=row.queue, code=row.code),
    )


def row_keys(letters: Iterable[IndexedLetter]) -> list[str]:
    """Ids of rows. A letter keeps its id, and a ticked box its letter, when others come and go."""
    seen: Counter[str] = Counter()
    keys = []
    for letter in letters:
        name = f"{letter.queue}-{letter.digest_text}"
        seen[name] += 1
        keys.append(f"{name}-{seen[name]}")
    return keys


def _sort_link(params: QueryParams, query: DeadQuery, name: Sort) -> SortLink:
    is_now = query.sort == name
    order = ("asc" if query.descending else "desc") if is_now else None
    url = address(PATH, params, sort=name, order=order, page=None)
    return SortLink(url, is_now, query.descending)


async def show_letter(request: Request) -> Response:
    """Answer `GET /dead/{queue}/{digest}`."""
    queue = request.path_params["queue"]
    try:
        digest = digest_number(request.path_params["digest"])
    except ValueError:
        raise HTTPException(404) from None
    if queue not in DEAD_QUEUES:
        raise HTTPException(404)
    dead = dead_of(request)
    result = await dead.details(queue, digest, _DETAILS_WAIT_S)
    known = dead.index.find(queue, digest)
    details = result.details if result is not None else None
    letter = details.letter if details is not None else next(iter(known), None)
    is_gone = result is not None and details is None and not result.problem
    return render(
        request,
        "dead/letter.html",
        status_code=404 if is_gone else 200,
        topics=("dead",) if result is None else (),
        queue=queue,
        digest=request.path_params["digest"],
        letter=letter,
        copies=details.copies if details is not None else len(known),
        details=details,
        is_gone=is_gone,
        problem=result.problem if result is not None else "",
        obstacles=OBSTACLES,
        here=request.url.path,
    )


routes = [
    Route(PATH, show),
    Route("/dead/{queue}/{digest}", show_letter),
]
