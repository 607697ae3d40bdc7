"""A query is asked once for all who look, and what is shown has the age of the fact (SPEC 16.1)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from keyturn.errors import BrokerUnavailableError, WaitTimeoutError
from keyturn.identifiers import format_time, parse_time
from keyturn.messages import ProjectStatus, StatusFilter, StatusRejected, StatusReported
from keyturn_workers.console import ask
from keyturn_workers.console.ask import Asker, Query, filled, page_of

if TYPE_CHECKING:
    from keyturn.messages import Event
    from keyturn.publisher import Publisher

_ID = "2f6c9a0e-0000-4000-8000-000000000001"
_AT = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
_PROJECTS = Query("projects")


def _report(at: datetime = _AT, **more: Any) -> StatusReported:
    fields = {"projects": ()} | more
    return StatusReported(
        at=format_time(at), request_id=_ID, project="*", view="projects", **fields
    )


def _refusal(code: str) -> StatusRejected:
    return StatusRejected(
        at=format_time(_AT), request_id=_ID, project="*", code=code, detail="see the log"
    )


@dataclass
class _Workers:
    """Control workers behind a publisher: each wait ends as the next of `outcomes` says."""

    outcomes: list[Event | Exception] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[dict[str, Any]] = field(default_factory=list)
    is_away: bool = False
    at_once: int = 0
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    async def connect(self) -> None:
        if self.is_away:
            raise BrokerUnavailableError("the broker cannot be reached")

    async def status(self, view: str, project: str, **more: Any) -> str:
        self.asked.append({"view": view, "project": project, **more})
        return _ID

    async def wait(self, _request_id: str, *, timeout_s: float) -> Event:
        assert timeout_s > 0
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
        finally:
            self.at_once -= 1
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@dataclass
class _Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def _asker(workers: _Workers, clock: _Clock | None = None, **options: Any) -> Asker:
    given: dict[str, Any] = {
        "first_wait_s": 0.05,
        "newer_wait_s": 0.01,
        "clock": clock or _Clock(),
    } | options
    return Asker(cast("Publisher", workers), **given)


async def test_a_report_is_shown_with_the_moment_at_which_its_reading_began() -> None:
    asker = _asker(_Workers([_report()]))
    assert asker.peek(_PROJECTS).at is None
    answer = await asker.ask(_PROJECTS)
    assert (answer.at, answer.problem) == (_AT, "")
    assert asker.peek(_PROJECTS) == answer


async def test_a_query_is_published_as_it_is() -> None:
    workers = _Workers([_report()])
    chosen = filled(text="acme", state="", parts=False)
    await _asker(workers).ask(
        Query("projects", filter=chosen, order="-generation", page=3, limit=50)
    )
    await _asker(workers).ask(Query("objects", after="next"))
    first, second = workers.asked
    assert first["filter"] == StatusFilter(text="acme")
    assert (first["order"], first["page"], first["limit"]) == ("-generation", 3, 50)
    assert (second["page"], second["after"], second["filter"]) == (1, "next", None)


async def test_equal_queries_share_a_request_and_a_fresh_answer_serves_all() -> None:
    workers, clock = _Workers([_report()]), _Clock()
    asker = _asker(workers, clock)
    await asyncio.gather(*(asker.ask(_PROJECTS) for _ in range(5)))
    assert len(workers.asked) == 1
    clock.now_s += ask.FRESH_S / 2
    await asker.ask(_PROJECTS)
    assert len(workers.asked) == 1
    clock.now_s += ask.FRESH_S
    await asker.ask(_PROJECTS)
    assert len(workers.asked) == 2


async def test_a_page_does_not_wait_long_for_a_newer_answer() -> None:
    newer = _report(_AT + timedelta(seconds=9))
    workers, clock = _Workers([_report(), newer]), _Clock()
    asker = _asker(workers, clock)
    await asker.ask(_PROJECTS)
    clock.now_s += 10
    workers.gate.clear()
    shown = await asker.ask(_PROJECTS)
    assert (shown.at, shown.problem) == (_AT, "")
    workers.gate.set()
    assert (await asker.ask(_PROJECTS)).at == parse_time(newer.at)
    assert len(workers.asked) == 2


async def test_a_page_does_not_wait_for_what_its_header_shows() -> None:
    workers = _Workers([_report()])
    workers.gate.clear()
    asker = _asker(workers, first_wait_s=60.0)
    assert (await asker.ask(_PROJECTS, is_brief=True)).report is None
    workers.gate.set()
    assert (await asker.ask(_PROJECTS)).at == _AT
    assert len(workers.asked) == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (WaitTimeoutError("nothing in time"), "No control worker responds."),
        (BrokerUnavailableError("the broker cannot be reached"), "The broker cannot be reached."),
    ],
)
async def test_since_when_nothing_is_answered_and_why_is_said_beside_what_is_known(
    error: Exception, words: str
) -> None:
    workers, clock = _Workers([_report(), error]), _Clock()
    asker = _asker(workers, clock)
    before = datetime.now(UTC)
    await asker.ask(_PROJECTS)
    clock.now_s += 10
    first = await asker.ask(_PROJECTS)
    clock.now_s += 100
    later = await asker.ask(_PROJECTS)
    assert (first.at, first.problem) == (_AT, words)
    assert first.since is not None
    assert before <= first.since
    assert later.since == first.since
    # Also of a query that was never answered.
    other = await asker.ask(Query("workers"))
    assert (other.report, other.problem, other.since) == (None, words, first.since)


async def test_an_answer_ends_the_silence() -> None:
    workers, clock = _Workers([WaitTimeoutError("none"), _report()]), _Clock()
    asker = _asker(workers, clock)
    assert (await asker.ask(_PROJECTS)).problem
    clock.now_s += 10
    assert (await asker.ask(_PROJECTS)).problem == ""


async def test_workers_that_are_silent_are_asked_less_and_less_but_for_a_person() -> None:
    workers, clock = _Workers([WaitTimeoutError("none")]), _Clock()
    asker = _asker(workers, clock, pauses_s=(5.0, 60.0), timeout_s=15.0)
    await asker.ask(_PROJECTS)
    clock.now_s += 2
    await asker.ask(_PROJECTS, is_eager=False)
    assert len(workers.asked) == 1
    await asker.ask(_PROJECTS)
    assert len(workers.asked) == 2
    clock.now_s += 59
    await asker.ask(_PROJECTS, is_eager=False)
    assert len(workers.asked) == 2
    clock.now_s += 2
    # One query finds out for all.
    workers.gate.clear()
    others = (_PROJECTS, Query("workers"), Query("queues"))
    await asyncio.gather(*(asker.ask(query, is_eager=False) for query in others))
    assert len(workers.asked) == 3


async def test_a_broker_that_is_away_is_looked_for_again_soon() -> None:
    workers, clock = _Workers([_report()], is_away=True), _Clock()
    asker = _asker(workers, clock)
    for _ in range(9):
        answer = await asker.ask(_PROJECTS)
        clock.now_s += 1.5
    assert answer.problem == "The broker cannot be reached."
    assert not workers.asked
    workers.is_away = False
    clock.now_s += 2
    assert (await asker.ask(_PROJECTS, is_eager=False)).problem == ""


async def test_what_cannot_be_read_or_is_refused_leaves_what_was_known() -> None:
    unreadable = _report(code="storage_unavailable", detail="503", projects=None)
    workers = _Workers([_report(), unreadable, _refusal("not_permitted"), _report()])
    clock = _Clock()
    asker = _asker(workers, clock)
    shown = []
    for _ in range(4):
        shown.append(await asker.ask(_PROJECTS))
        clock.now_s += 5
    assert [answer.at for answer in shown] == [_AT] * 4
    assert shown[1].problem == "It cannot be read: storage_unavailable (503)."
    assert shown[2].problem == "Control workers refuse it: not_permitted (see the log)."
    assert shown[2].since == shown[1].since
    assert (shown[3].problem, shown[3].since) == ("", None)


async def test_a_problem_of_one_query_is_not_that_of_another() -> None:
    workers, clock = _Workers([_refusal("not_permitted"), _report()]), _Clock()
    asker = _asker(workers, clock)
    await asker.ask(_PROJECTS)
    assert (await asker.ask(Query("workers"))).problem == ""


async def test_a_refused_query_is_not_asked_all_day() -> None:
    """Each refusal is a dead letter."""
    workers, clock = _Workers([_refusal("not_permitted")]), _Clock()
    asker = _asker(workers, clock)
    for _ in range(5):
        await asker.ask(_PROJECTS, is_eager=False)
        clock.now_s += 5
    assert len(workers.asked) == 1
    await asker.ask(_PROJECTS)
    clock.now_s += ask.REFUSED_PAUSE_S
    await asker.ask(_PROJECTS, is_eager=False)
    assert len(workers.asked) == 3


async def test_few_queries_wait_for_their_answers_at_once() -> None:
    workers = _Workers([_report()])
    workers.gate.clear()
    asker = _asker(workers, first_wait_s=0.0)
    for page in range(1, 3 * ask.MAX_WAITING):
        await asker.ask(Query("projects", page=page))
    workers.gate.set()
    answered = [Query("projects", page=page) for page in range(1, 3 * ask.MAX_WAITING)]
    for _ in range(1000):
        await asyncio.sleep(0)
    assert sum(asker.peek(query).report is not None for query in answered) == ask.MAX_WAITING


async def test_a_filter_that_no_message_can_hold_is_said_and_not_sent() -> None:
    workers = _Workers([_report()])
    answer = await _asker(workers).ask(Query("projects", filter=filled(master_key="\n")))
    assert "the filter is malformed" in answer.problem
    assert not workers.asked


async def test_busy_workers_are_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "_BUSY_PAUSE_S", 0.0)
    busy = _report(code="too_many_requests", projects=None)
    workers = _Workers([busy, _report()])
    assert (await _asker(workers).ask(_PROJECTS)).at == _AT
    assert len(workers.asked) == 2


async def test_few_requests_are_under_way_at_once() -> None:
    workers = _Workers([_report()])
    workers.gate.clear()
    asker = _asker(workers, first_wait_s=5.0)
    asking = asyncio.gather(*(asker.ask(Query("projects", page=page)) for page in range(1, 20)))
    for _ in range(50):
        await asyncio.sleep(0)
    assert workers.at_once == ask.MAX_UNDER_WAY
    workers.gate.set()
    await asking
    assert workers.most_at_once == ask.MAX_UNDER_WAY


async def test_answers_are_forgotten_after_a_minute_and_beyond_the_bound() -> None:
    workers, clock = _Workers([_report()]), _Clock()
    asker = _asker(workers, clock)
    queries = [Query("projects", page=page) for page in range(1, ask.MAX_KEPT + 11)]
    for query in queries:
        await asker.ask(query)
    assert [asker.peek(query).at for query in queries[:10]] == [None] * 10
    assert asker.peek(queries[10]).at == _AT
    clock.now_s += ask.KEEP_S + 1
    await asker.ask(_PROJECTS)
    assert asker.peek(queries[-1]).at is None


async def test_what_is_under_way_at_the_end_is_abandoned() -> None:
    workers = _Workers([_report()])
    workers.gate.clear()
    asker = _asker(workers)
    await asker.ask(_PROJECTS)
    await asker.close()
    assert workers.at_once == 0


def test_a_page_counts_what_matches_and_what_there_is() -> None:
    query = Query("projects", page=2, limit=100)
    rows: tuple[ProjectStatus, ...] = ()
    page = page_of(_report(total=250, of_all=900, is_complete=False, page=2), rows, query)
    assert (page.number, page.pages, page.total, page.of_all) == (2, 3, 250, 900)
    assert not page.is_complete
    assert page_of(_report(), rows, query).pages == 1
