"""A request is sent again under its own id, and who stops waiting learns it (SPEC 6.2, 14)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import (
    AlreadyExistsError,
    NotDeliveredError,
    OutcomeUnknownError,
    WaitTimeoutError,
)
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.cli.publishing import (
    PendingRequest,
    event_error,
    print_request_rows,
    publish_row,
    publish_with_retry,
    request_row,
    request_status,
    result_document,
    resumable,
    wait_for_row,
)
from tests.unit.keyturn_workers.cli.fakes import event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyturn.messages import Event

_ID = "2f6c9a0e-0000-4000-8000-000000000001"


def _publishing(*errors: Exception) -> tuple[list[str], Callable[[], Awaitable[str]]]:
    """What was published, and what publishes: each error is raised once, in order."""
    sent: list[str] = []
    left = list(errors)

    async def publish() -> str:
        sent.append(_ID)
        if left:
            raise left.pop(0)
        return _ID

    return sent, publish


async def test_an_unconfirmed_request_is_sent_once_more() -> None:
    sent, publish = _publishing(OutcomeUnknownError("lost"))
    await publish_with_retry(publish)
    assert len(sent) == 2
    sent, publish = _publishing(OutcomeUnknownError("1"), OutcomeUnknownError("2"))
    with pytest.raises(OutcomeUnknownError, match="2"):
        await publish_with_retry(publish)
    assert len(sent) == 2


async def test_a_request_that_may_have_arrived_stays_unknown() -> None:
    """Even if a second attempt did not leave: a broker at its alarm serves the first one later."""
    sent, publish = _publishing(OutcomeUnknownError("first"), NotDeliveredError("alarm"))
    with pytest.raises(OutcomeUnknownError, match="first"):
        await publish_with_retry(publish)
    assert len(sent) == 2


async def test_what_cannot_be_sent_twice_is_sent_once() -> None:
    sent, publish = _publishing(OutcomeUnknownError("lost"))
    with pytest.raises(OutcomeUnknownError):
        await publish_with_retry(publish, attempts=1)
    assert len(sent) == 1


async def test_what_is_on_no_queue_is_not_sent_again() -> None:
    sent, publish = _publishing(NotDeliveredError("no worker"))
    request = PendingRequest()
    with pytest.raises(NotDeliveredError):
        await request.send(publish)
    assert len(sent) == 1
    assert not request.sent
    await request.send(_publishing()[1])
    assert request.sent


@pytest.mark.parametrize(
    ("project", "option"), [("acme", " --project acme"), ("*", ""), (None, "")]
)
def test_who_stops_waiting_learns_how_to_follow_the_request(
    project: str | None, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hint = f"to follow it: keyturn status {_ID}{option} --watch"
    with (
        pytest.raises(CommandError) as raised,
        resumable(PendingRequest(_ID, project, sent=True)),
    ):
        raise WaitTimeoutError("no event in 5 s")
    assert str(raised.value) == f"no event in 5 s. Otherwise it continues in the background; {hint}"
    for sent in (True, False):
        with (
            pytest.raises(KeyboardInterrupt),
            resumable(PendingRequest(_ID, project, sent=sent)),
        ):
            raise KeyboardInterrupt
        assert (hint in capsys.readouterr().err) is sent


@pytest.mark.parametrize(
    ("type_", "fields", "status"),
    [
        ("rotation.accepted", {"rotation_id": _ID, "generation": 2}, "accepted"),
        ("rotation.rejected", {"rotation_id": _ID, "code": "c", "detail": ""}, "rejected"),
        ("rotation.failed", {"rotation_id": _ID, "code": "c", "detail": ""}, "failed"),
        ("sweep.failed", {"sweep_id": _ID, "code": "c", "detail": ""}, "failed"),
        ("sweep.completed", {"sweep_id": _ID}, "completed"),
    ],
)
def test_a_requests_status_is_that_of_its_last_event(
    type_: str, fields: dict[str, Any], status: str
) -> None:
    last = event(type_, **fields)
    assert request_status(last) == status
    document = result_document({"project": "acme"}, status, last)
    assert (document["project"], document["status"]) == ("acme", status)
    assert document["event"]["type"] == type_


def test_without_an_event_a_request_is_queued() -> None:
    assert request_status(None) == "queued"
    assert result_document({}, "queued", None) == {"status": "queued", "event": None}


def test_a_refusal_is_its_code_and_its_detail() -> None:
    for detail, text in (("that key was in use", "kek_reused: that key was in use"), ("", None)):
        fields = {"rotation_id": _ID, "code": "kek_reused", "detail": detail}
        refused: Any = event("rotation.rejected", **fields)
        assert str(event_error(refused)) == (text or "kek_reused")


def _unsent(**fields: Any) -> dict[str, Any]:
    return request_row(key="a", request_id=_ID) | fields


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (AlreadyExistsError("a"), {"code": "already_exists", "detail": "a"}),
        (NotDeliveredError("no worker"), {"detail": "no worker"}),
        (OutcomeUnknownError("lost"), {"status": "unknown", "detail": "lost"}),
    ],
)
async def test_a_row_that_could_not_be_sent_says_why(
    error: Exception, fields: dict[str, Any]
) -> None:
    row = _unsent()
    assert not await publish_row(row, _publishing(error)[1], attempts=1)
    assert row == _unsent(**fields)


async def test_a_row_that_was_sent_is_queued_until_its_event() -> None:
    row = _unsent()
    assert await publish_row(row, _publishing(OutcomeUnknownError("lost"))[1])
    assert row == _unsent(status="queued")

    async def late() -> Event:
        raise WaitTimeoutError("no event in 5 s")

    await wait_for_row(row, late(), "deleted")
    assert (row["status"], row["detail"]) == ("pending", "no event in 5 s")


async def test_a_row_ends_as_its_event_says() -> None:
    async def answered() -> Event:
        return event("object.deleted", request_id=_ID, key="a")

    async def refused() -> Event:
        return event("delete.rejected", request_id=_ID, code="unknown_project", detail="acme")

    row = _unsent()
    await wait_for_row(row, answered(), "deleted")
    assert (row["status"], row["code"]) == ("deleted", None)
    assert row["event"]["type"] == "object.deleted"
    await wait_for_row(row, refused(), "deleted")
    assert (row["status"], row["code"], row["detail"]) == ("rejected", "unknown_project", "acme")


def test_of_several_failures_the_first_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        _unsent(status="deleted"),
        _unsent(key="b", code="not_found", detail="b"),
        _unsent(key="c", detail="lost"),
    ]
    columns = ("key", "status", "code", "size")
    with pytest.raises(CommandError) as raised:
        print_request_rows(columns, rows, "key", "deleted", as_json=False)
    assert str(raised.value) == "2 of 3 failed; the first was b: not_found: b"
    assert capsys.readouterr().out.splitlines()[0].split() == ["key", "status", "code"]
    with pytest.raises(CommandError) as raised:
        print_request_rows(columns, rows[2:], "key", "deleted", as_json=False)
    assert str(raised.value) == "lost"
    done = [_unsent(status="deleted"), _unsent(status="queued")]
    print_request_rows(columns, done, "key", "deleted", as_json=True)


def test_what_silence_can_mean_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = "no event in 5 s: no worker has served it yet"
    rows = [_unsent(status="pending", detail=text), _unsent(key="b", status="pending", detail=text)]
    columns = ("key", "status", "detail")
    with pytest.raises(CommandError, match=text):
        print_request_rows(columns, rows, "key", "stored", as_json=False)
    table = capsys.readouterr().out
    assert table.count("no event in 5 s") == 2
    assert "no worker" not in table
    with pytest.raises(CommandError):
        print_request_rows(columns, rows, "key", "stored", as_json=True)
    assert [row["detail"] for row in json.loads(capsys.readouterr().out)] == [text, text]
