"""*Dead letters*: by code and one by one; replay and discard by a worker (SPEC 6.9, 16.2).

The oldest letters of each queue are shown. A request names all letters of a code, or single ones of
one queue; a control worker moves them in one pass. Nothing is requested before a person has
confirmed the number of letters; if it cannot be undone, by typing the number.
"""

import re
from dataclasses import dataclass, replace
from typing import Final, cast, get_args

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keyturn.errors import (
    AlreadyExistsError,
    BodyTooLargeError,
    DeletedKeyError,
    RequestExpiredError,
)
from keyturn.identifiers import ALL_PROJECTS
from keyturn.messages.audit import STARTED
from keyturn.messages.events import StatusReported
from keyturn.messages.fields import REASON_MAX_CHARACTERS, DeadLettersAction
from keyturn.messages.requests import NAMED_LETTERS, UNKNOWN_CODE
from keyturn.messages.status import AuditStatus
from keyturn.topology import DEAD_QUEUES
from keyturn_workers.console.actions import Action, Letters
from keyturn_workers.console.ask import PAGE_ROWS, Query, filled, page_of
from keyturn_workers.console.auth.person import require_operate
from keyturn_workers.console.context import ask
from keyturn_workers.console.pages.forms import (
    actions_of,
    expired_page,
    new_token,
    outcome_page,
    read_token,
)
from keyturn_workers.console.rendering import words
from keyturn_workers.console.rendering.templates import REFRESH_S, render

PATH: Final = "/dead"
OBSTACLES: Final = {
    None: "It can be replayed.",
    "body": "Its body was not kept: with this code, only the request's identifiers are.",
    "type": "It names no type of request, so there is no queue to replay it to.",
    "expired": "It has expired and would be refused again. Its publisher must publish it again; "
    "only an upload can also be signed again, with keyturn dead replay --resign.",
}
"""The reasons why a letter cannot be replayed from the console."""
_NOT_REPLAYED: Final = frozenset(
    error.code
    for error in (AlreadyExistsError, DeletedKeyError, BodyTooLargeError, RequestExpiredError)
)
"""Codes of letters without a kept body, or that would be refused again (SPEC 6.9)."""
_PURPOSE: Final = "dead-letters"
_TYPED_FROM: Final = 100
"""A replay of more letters is confirmed by typing their number."""
_CODE: Final = re.compile(r"[a-z0-9_]{1,64}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
# The first two blocks of control characters of Unicode; nothing else is refused.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Choice:
    """Letters of one queue chosen by a person, with the token of the form that moves them."""

    letters: Letters
    token: str
    typed: str = ""
    reason: str = ""
    problems: dict[str, str] | None = None

    @property
    def needs_number(self) -> bool:
        """True if the number of letters must be typed."""
        return self.letters.move == "discard" or self.letters.count > _TYPED_FROM


async def show(request: Request) -> Response:
    """Answer `GET /dead`."""
    params = request.query_params
    queue, code, text = (words.text_of(params, name) for name in ("queue", "code", "text"))
    queue = queue if queue.endswith(".dead") or not queue else f"{queue}.dead"
    queue = queue if queue in DEAD_QUEUES else ""
    query = _query(queue, code, text, words.page_of(params))
    (answer,) = await ask(request, query)
    report = answer.report
    codes = sorted({each.code for each in (report and report.codes) or ()} | ({code} - {""}))
    return render(
        request,
        "dead/letters.html",
        refresh_s=REFRESH_S,
        answer=answer,
        page=report and page_of(report, report.dead_letters, query),
        counts=(report and report.codes) or (),
        cut=_cut(report),
        queue=queue,
        code=code,
        text=text,
        queues=[("", "Any"), *((each, each) for each in DEAD_QUEUES)],
        codes=[("", "Any"), *((each, each) for each in codes)],
        is_filtered=bool(query.filter),
        not_replayed=_NOT_REPLAYED,
        url=lambda number: words.address(PATH, params, page=number),
    )


async def show_letter(request: Request) -> Response:
    """Answer `GET /dead/{queue}/{letter}`."""
    queue, digest = request.path_params["queue"], request.path_params["letter"]
    if queue not in DEAD_QUEUES or _DIGEST.fullmatch(digest) is None:
        raise HTTPException(404)
    (answer,) = await ask(request, _query(queue, "", digest, 1))
    rows = (answer.report and answer.report.dead_letters) or ()
    found = [row for row in rows if (row.queue, row.letter) == (queue, digest)]
    is_gone = answer.report is not None and not found
    ended = await _end_of(request, queue, digest) if is_gone else None
    return render(
        request,
        "dead/letter.html",
        status_code=404 if is_gone else 200,
        refresh_s=0 if answer.report else REFRESH_S,
        answer=answer,
        queue=queue,
        digest=digest,
        letter=next(iter(found), None),
        copies=len(found),
        is_gone=is_gone,
        ended=ended,
        obstacles=OBSTACLES,
    )


async def _end_of(request: Request, queue: str, digest: str) -> AuditStatus | None:
    """Return the record of the replay or discard that removed a letter, if one is known."""
    (answer,) = await ask(request, Query("audit", filter=filled(text=digest)))
    for row in (answer.report and answer.report.audit_records) or ():
        if (row.queue, row.request) == (queue, digest) and row.action in words.MOVED:
            return row if row.outcome == STARTED else None
    return None


async def choose_code(request: Request) -> Response:
    """Answer `GET /dead/confirm`: all letters of a code in a queue."""
    require_operate(request)
    params = request.query_params
    queue, code = words.text_of(params, "queue"), words.text_of(params, "code")
    if queue not in DEAD_QUEUES or _CODE.fullmatch(code) is None:
        raise HTTPException(400, "The address must name a queue and a code.")
    (answer,) = await ask(request, _query(queue, "", "", 1))
    counts = (answer.report and answer.report.codes) or ()
    known = sum(each.count for each in counts if (each.queue, each.code) == (queue, code))
    letters = Letters(_move_of(params.get("move")), queue, code=code, count=known)
    return _confirmation(request, [_choice(request, letters)], is_cut=bool(_cut(answer.report)))


async def choose_letters(request: Request) -> Response:
    """Answer `POST /dead/confirm`: letters that were selected, one form for each queue."""
    require_operate(request)
    form = await request.form(max_fields=NAMED_LETTERS + 20)
    move = _move_of(form.get("move"))
    by_queue: dict[str, list[str]] = {}
    for chosen in dict.fromkeys(form.getlist("letter")):
        queue, _, digest = str(chosen).rpartition("/")
        if queue not in DEAD_QUEUES or _DIGEST.fullmatch(digest) is None:
            raise HTTPException(400, "A selected letter has no valid name.")
        by_queue.setdefault(queue, []).append(digest)
    choices = [
        _choice(request, Letters(move, queue, letters=tuple(digests), count=len(digests)))
        for queue, digests in by_queue.items()
    ]
    return _confirmation(request, choices, is_cut=False)


async def move(request: Request) -> Response:
    """Answer `POST /dead/move`: publish the request, if it was confirmed."""
    person = require_operate(request)
    fields = await request.form(max_fields=NAMED_LETTERS + 20)
    form = {name: value for name, value in fields.items() if isinstance(value, str)}
    token = read_token(request, form, _PURPOSE)
    if token is None:
        return expired_page(request, PATH)
    if (known := actions_of(request).get(token.request_id)) is not None:
        return outcome_page(known)
    letters = _letters_of(token.subject, fields)
    choice = _checked(Choice(letters, form["form"], form.get("typed", ""), form.get("reason", "")))
    if choice.problems:
        return _confirmation(request, [choice], is_cut=False, status_code=422)
    action = Action(
        token.request_id, "dead_letters", ALL_PROJECTS, person.name, letters=choice.letters
    )
    return outcome_page(await actions_of(request).request(action))


def _checked(choice: Choice) -> Choice:
    """Return the choice with its form's problems, or with its reason."""
    problems = {}
    letters = choice.letters
    if choice.needs_number and choice.typed.strip().replace(",", "") != str(letters.count):
        problems["typed"] = f"Type {letters.count} to confirm."
    reason = choice.reason.strip()
    if _CONTROL.search(reason):
        problems["reason"] = "A reason is one line, without control characters."
    elif len(reason) > REASON_MAX_CHARACTERS:
        problems["reason"] = f"A reason has at most {REASON_MAX_CHARACTERS} characters."
    return replace(choice, letters=replace(letters, reason=reason or None), problems=problems)


def _choice(request: Request, letters: Letters) -> Choice:
    # The token carries what is moved: the form cannot name another queue, code or number.
    subject = (letters.move, letters.queue, letters.code or "", str(letters.count))
    return Choice(letters, new_token(request, _PURPOSE, *subject))


def _letters_of(subject: tuple[str, ...], fields: FormData) -> Letters:
    move, queue, code, count = subject
    digests = tuple(str(value) for value in fields.getlist("letter"))
    if not code and (len(digests) != int(count) or not all(map(_DIGEST.fullmatch, digests))):
        raise HTTPException(400, "The form does not name the letters that were confirmed.")
    return Letters(_move_of(move), queue, code or None, () if code else digests, int(count))


def _confirmation(
    request: Request, choices: list[Choice], *, is_cut: bool, status_code: int = 200
) -> Response:
    return render(
        request,
        "dead/confirm.html",
        status_code=status_code,
        choices=choices,
        is_cut=is_cut,
        unknown_code=UNKNOWN_CODE,
    )


def _move_of(value: object) -> DeadLettersAction:
    if value not in get_args(DeadLettersAction):
        raise HTTPException(400, "The form says neither replay nor discard.")
    return cast("DeadLettersAction", value)


def _query(queue: str, code: str, text: str, page: int) -> Query:
    chosen = filled(queue=queue, code=code if _CODE.fullmatch(code) else "", text=text)
    return Query("dead_letters", filter=chosen, page=page, limit=PAGE_ROWS)


def _cut(report: StatusReported | None) -> list[tuple[str, int, int]]:
    """Return queues with unread letters: the depth, and the number of letters read."""
    rows = (report and report.dead_queues) or ()
    return [(row.queue, row.depth, row.read) for row in rows if row.depth > row.read]


routes = [
    Route(PATH, show),
    Route("/dead/confirm", choose_code),
    Route("/dead/confirm", choose_letters, methods=["POST"]),
    Route("/dead/move", move, methods=["POST"]),
    Route("/dead/{queue}/{letter}", show_letter),
]
