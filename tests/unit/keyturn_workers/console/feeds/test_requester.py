"""Requests for reports: one at a time of each kind, and pauses while nothing answers."""

from __future__ import annotations

import asyncio

import pytest

from keyturn.errors import UnknownProjectError, WaitTimeoutError
from keyturn.messages import StatusRejected
from keyturn_workers.console.feeds import PausedError, StatusArguments, StatusRequester
from tests.unit.keyturn_workers.console.feeds.publishers import FakePublisher
from tests.unit.keyturn_workers.console.model.messages import (
    make_model,
    project_status,
    projects_report,
    report,
    text,
    uid,
)

ALL = StatusArguments("projects")


async def test_the_model_has_the_report_when_the_request_returns() -> None:
    publisher = FakePublisher(lambda _: projects_report(1, project_status("acme")))
    model = make_model()
    await StatusRequester(publisher, model).request(ALL, actor="ada")
    assert model.project("acme") is not None
    assert model.feed("status").is_connected
    assert publisher.requests[0]["actor"] == "ada"


async def test_one_request_serves_all_who_ask_meanwhile() -> None:
    publisher = FakePublisher(lambda _: projects_report(1))
    publisher.gate.clear()
    requester = StatusRequester(publisher, make_model())
    asked = [asyncio.ensure_future(requester.request(ALL)) for _ in range(3)]
    await asyncio.sleep(0)
    publisher.gate.set()
    await asyncio.gather(*asked)
    assert len(publisher.requests) == 1
    await requester.request(ALL)
    assert len(publisher.requests) == 2


async def test_without_an_answer_requests_pause_longer_and_longer() -> None:
    publisher = FakePublisher(lambda _: None)
    model, now = make_model(), 0.0
    requester = StatusRequester(publisher, model, clock=lambda: now)
    for pause_s in (5.0, 15.0, 60.0, 300.0, 300.0):
        with pytest.raises(WaitTimeoutError):
            await requester.request(ALL)
        assert requester.paused_s == pause_s
        with pytest.raises(PausedError):
            await requester.request(ALL)
        now += pause_s
    assert not model.feed("status").is_connected
    assert "no answer" in (model.feed("status").problem or "")


async def test_a_person_does_not_wait_for_the_pause() -> None:
    publisher = FakePublisher(lambda _: None)
    requester = StatusRequester(publisher, make_model(), clock=lambda: 0.0)
    for _ in range(2):
        with pytest.raises(WaitTimeoutError):
            await requester.request(ALL, eager=True)
    publisher.answer = lambda _: projects_report(1)
    await requester.request(ALL, eager=True)
    assert not requester.is_paused


async def test_a_refusal_is_raised_as_its_error() -> None:
    rejected = StatusRejected(
        at=text(1), request_id=uid(1), project="acme", code="unknown_project", detail="no keyring"
    )
    model = make_model()
    requester = StatusRequester(FakePublisher(lambda _: rejected), model)
    with pytest.raises(UnknownProjectError):
        await requester.request(ALL)
    # A control worker answered: others may ask at once.
    assert not requester.is_paused
    assert (model.feed("status").is_connected, model.feed("status").problem) == (True, None)


@pytest.mark.parametrize(
    ("code", "is_problem", "pauses"),
    [
        ("storage_unavailable", True, True),
        ("too_many_requests", False, True),
        ("not_found", False, False),
    ],
)
async def test_an_answer_without_rows_is_an_answer(
    code: str,
    is_problem: bool,
    pauses: bool,
) -> None:
    model = make_model()
    answer = report(1, "projects", code=code, detail="why")
    requester = StatusRequester(FakePublisher(lambda _: answer), model)
    await requester.request(ALL)
    assert model.feed("status").is_connected
    assert (model.feed("status").problem is not None) == is_problem
    assert requester.is_paused == pauses


async def test_who_gives_up_does_not_end_the_request_for_others() -> None:
    publisher = FakePublisher(lambda _: projects_report(1))
    publisher.gate.clear()
    requester = StatusRequester(publisher, make_model())
    first = asyncio.ensure_future(requester.request(ALL))
    second = asyncio.ensure_future(requester.request(ALL))
    await asyncio.sleep(0)
    first.cancel()
    publisher.gate.set()
    await second
    await requester.close()
