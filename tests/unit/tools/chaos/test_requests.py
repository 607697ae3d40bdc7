"""What the publisher and the operator of `make chaos` send while a keyring is stolen."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from keyturn.messages import EnrollRejected, ProjectEnrolled, UploadStored
from tools.chaos import operator as operators
from tools.chaos.operator import Operator
from tools.chaos.plan import Plan, make_load, with_deletions
from tools.chaos.publisher import EventLog, LoadSender

if TYPE_CHECKING:
    import pytest

    from keyturn.messages import Event

AT = "2026-11-29T10:00:00.000000Z"


class _Publisher:
    """Confirms everything at once."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.sent: dict[str, list[Any]] = {}

    async def upload(self, *_: Any, upload_id: str, **__: Any) -> None:
        self.ids.append(upload_id)
        self.sent[upload_id] = [SimpleNamespace(request_id=upload_id)]

    async def _send(self, signed: Any) -> None:
        self.ids.append(signed.request_id)


def _sender() -> tuple[LoadSender, _Publisher]:
    publisher: Any = _Publisher()
    nothing: Any = None
    plan = Plan(7, 60, make_load(7, 60), ())
    return LoadSender(plan, nothing, publisher, EventLog(), {}), publisher


async def test_an_early_upload_is_published_again_in_its_turn() -> None:
    sender, publisher = _sender()
    await sender.send_early("amber")
    (early,) = publisher.ids
    upload = next(u for u in sender.plan.load.uploads if u.upload_id == early)
    assert (upload.project, upload.is_plain, upload.staged) == ("amber", True, False)
    assert sender.confirmed == 0
    await sender.send_early("amber")
    assert publisher.ids[1] != early
    await sender._send(upload)
    assert publisher.ids[2] == early
    assert sender.confirmed_ids == {early}


async def test_without_an_upload_that_waits_an_earlier_one_is_published_again() -> None:
    sender, publisher = _sender()
    of_amber = [u for u in sender.plan.load.uploads if u.project == "amber" and u.is_plain]
    for upload in of_amber:
        await sender._send(upload)
        sender.heard(upload.upload_id)
    await sender.send_early("amber")
    assert publisher.ids == [*(u.upload_id for u in of_amber), of_amber[-1].upload_id]
    await sender.send_early("nothing was sent to this project")
    assert len(publisher.ids) == len(of_amber) + 1


async def test_a_key_is_written_again_only_once_it_was_stored() -> None:
    """Else the first writer, delivered again after its worker was killed, may come second."""
    sender, publisher = _sender()
    sender.plan = replace(sender.plan, load=with_deletions(sender.plan.load, 7, 1))
    again = next(u for u in sender.plan.load.uploads if u.rewrites is not None)
    first = next(u for u in sender.plan.load.uploads if u.upload_id == again.rewrites)
    assert first.deleted
    sending = asyncio.create_task(sender._send(again))
    await sender._send(first)
    assert publisher.ids == [first.upload_id]
    stored = UploadStored(
        upload_id=first.upload_id,
        project=first.project,
        key=first.key,
        at=AT,
        size=first.size_bytes,
        generation=1,
    )
    await sender.event_log.add(stored)
    await sending
    assert publisher.ids == [first.upload_id, again.upload_id]


def _refused(request_id: str) -> Event:
    return EnrollRejected(
        request_id=request_id,
        project="amber",
        at=AT,
        code="keyring_rolled_back",
        detail="rolled back",
    )


def _enrolled(request_id: str) -> Event:
    return ProjectEnrolled(request_id=request_id, project="amber", at=AT, generation=1)


async def test_a_request_that_was_refused_for_a_stolen_keyring_is_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With its id: it may have been done before the keyring was stolen."""
    monkeypatch.setattr(operators, "_PAUSE_S", 0.001)
    log, ids = EventLog(), list[str]()
    answers = [_refused, _refused, _enrolled]

    async def enroll(project: str, *, api_key: str, request_id: str) -> None:
        assert (project, api_key) == ("amber", "a key")
        ids.append(request_id)
        log.events.setdefault(request_id, []).append(answers[len(ids) - 1](request_id))

    async def until_confirmed(send: Any) -> None:
        await send()

    nothing: Any = None
    sender: Any = SimpleNamespace(
        publisher=SimpleNamespace(enroll=enroll), until_confirmed=until_confirmed, enrolled={}
    )
    tenants: Any = {"amber": SimpleNamespace(api_keys=["a key"])}
    operator = Operator(nothing, sender, log, tenants)
    async with asyncio.timeout(10):
        await operator.enroll("amber")
    assert len(ids) == 3
    assert len(set(ids)) == 1
    assert [request.request_id for request in operator.requested] == ids[:1]
    assert len(operator.accepted["amber"]) == 1
