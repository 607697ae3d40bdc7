"""What the publisher, the operator and the readers of `make chaos` send and notice (SPEC 9)."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn.messages import EnrollRejected, ProjectEnrolled, UploadStored
from tools.chaos import gateway_readers
from tools.chaos import operator as operators
from tools.chaos.gateway_readers import GatewayReaders
from tools.chaos.operator import Operator
from tools.chaos.plan import Plan, Upload, make_load, plaintext, with_deletions
from tools.chaos.publisher import EventLog, LoadSender

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from keyturn.messages import Event

    Answer = Callable[[web.Request, bool], Awaitable[web.StreamResponse]]


# The publisher and the operator, while a keyring is stolen.


AT = "2026-11-29T10:00:00.000000Z"


class _Publisher:
    """Confirms everything at once."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.sent: dict[str, list[Any]] = {}

    async def upload(self, *_: Any, upload_id: str, **__: Any) -> None:
        self.ids.append(upload_id)
        self.sent[upload_id] = [SimpleNamespace(request_id=upload_id)]

    async def _publish(self, signed: Any) -> None:
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


async def test_uploads_that_wait_for_a_customer_key_make_no_other_wait() -> None:
    sender, publisher = _sender()
    upload = next(u for u in sender.plan.load.uploads if u.is_plain and not u.staged)
    free = sender._window._value
    await sender._send(replace(upload, project="fir"))
    assert sender._window._value == free
    await sender._send(replace(upload, number=-2, upload_id="another"))
    assert sender._window._value == free - 1
    sender.heard("another")
    assert sender._window._value == free
    assert len(publisher.ids) == 2
    assert sender.sent_s.keys() > sender.heard_s.keys() == {"another"}


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

    async def enroll(
        project: str, *, api_key: str, customer_key: str | None, request_id: str
    ) -> None:
        assert (project, api_key, customer_key) == ("amber", "a key", "kms/key")
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
        await operator.enroll("amber", "kms/key")
    assert len(ids) == 3
    assert len(set(ids)) == 1
    assert [request.request_id for request in operator.requested] == ids[:1]
    assert len(operator.accepted["amber"]) == 1


# The gateway readers, with a faulty gateway.


SEED = 7
UPLOAD = Upload(1, "the upload's id", "amber", "a folder/ü.bin", 3000)
OLD, CURRENT = "the old key", "the current key"
READS = 60


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_readers, "_PAUSE_S", 0.001)
    monkeypatch.setattr(gateway_readers, "_GONE_S", 0.001)


@asynccontextmanager
async def _standing_for_a_gateway(answer: Answer) -> AsyncIterator[str]:
    async def respond(request: web.Request) -> web.StreamResponse:
        assert request.path == "/v1/projects/amber/objects/a folder/ü.bin"
        key = request.headers["Authorization"].removeprefix("Bearer ")
        assert key in {OLD, CURRENT}
        return await answer(request, key == CURRENT)

    app = web.Application()
    app.router.add_get("/{rest:.*}", respond)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def _read(
    answer: Answer,
    *,
    accepted_at: float = 0.0,
    denied: dict[str, float] | None = None,
    stolen: Iterable[str] = (),
    refused_until: float = 0.0,
    knows_marks: bool = True,
) -> GatewayReaders:
    """What two readers noted in some reads; both keys were accepted long ago, or as given."""
    operator: Any = SimpleNamespace(
        tenants={"amber": SimpleNamespace(api_keys=[OLD, CURRENT])},
        accepted={"amber": [0.0, accepted_at]},
        supervisor=SimpleNamespace(
            processes={"gateway-1": SimpleNamespace(knows_marks=lambda: knows_marks)}
        ),
    )
    async with _standing_for_a_gateway(answer) as url:
        found = GatewayReaders(
            operator,
            url,
            SEED,
            stored=[UPLOAD],
            denied=denied or {},
            refused_until={"amber": refused_until},
            stolen=set(stolen),
        )
        task = asyncio.create_task(found.keep_reading())
        async with asyncio.timeout(30):
            while found.seen.total() < READS:
                assert not task.done()
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return found


def _answers(old: int, current: int, body: bytes = plaintext(SEED, UPLOAD)) -> Answer:
    """A gateway that gives each key this status, and with 200 this body."""

    async def answer(_: web.Request, is_current: bool) -> web.StreamResponse:
        status = current if is_current else old
        return web.Response(status=status, body=body if status == 200 else b"")

    return answer


async def test_a_correct_gateway_passes() -> None:
    """Both kinds of reads occur: otherwise the other tests would prove nothing."""
    found = await _read(_answers(401, 200))
    assert found.wrong == []
    assert set(found.seen) == {"200", "401 to an old key"}
    assert min(found.seen.values()) > 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (_answers(401, 200, plaintext(SEED, UPLOAD)[:-1] + b"!"), "served bytes other than"),
        (_answers(401, 200, plaintext(SEED, UPLOAD)[:-1]), "served bytes other than"),
        (_answers(200, 200), "served to a key that was rotated out"),
        (_answers(401, 401), "the current key was rejected"),
        (_answers(401, 500), "answered 500"),
    ],
)
async def test_a_faulty_gateway_is_found(answer: Answer, message: str) -> None:
    found = await _read(answer)
    assert any(message in wrong and UPLOAD.upload_id in wrong for wrong in found.wrong), found.wrong


@pytest.mark.parametrize(("until", "is_wrong"), [(float("inf"), False), (0.0, True)])
async def test_a_gateway_refuses_a_project_only_while_its_customer_key_is_away(
    until: float, is_wrong: bool
) -> None:
    found = await _read(_answers(401, 403), refused_until=until)
    assert any("answered 403" in wrong for wrong in found.wrong) == is_wrong


async def test_a_broken_connection_is_not_a_wrong_response() -> None:
    """A truncated response does not count as wrong bytes."""

    async def broken(request: web.Request, current: bool) -> web.StreamResponse:
        if not current:
            return web.Response(status=503)
        begun = web.StreamResponse(headers={"Content-Length": str(UPLOAD.size_bytes)})
        await begun.prepare(request)
        await begun.write(plaintext(SEED, UPLOAD)[:100])
        assert request.transport is not None
        request.transport.abort()
        return begun

    found = await _read(broken)
    assert found.wrong == []
    assert set(found.seen) == {"broken", "503 to an old key"}


@pytest.mark.parametrize("answer", [_answers(200, 200), _answers(401, 401)])
async def test_either_response_is_correct_during_a_rotation(answer: Answer) -> None:
    """The gateway may go by its cache for a while (SPEC 9.1): nothing is surely wrong then."""
    just_now = time.monotonic() + 3600  # however slowly this test runs
    assert (await _read(answer, accepted_at=just_now)).wrong == []


@pytest.mark.parametrize(
    ("answer", "s3_key", "message"),
    [
        (_answers(401, 404), object_s3_key(UPLOAD.project, UPLOAD.key), "answered 404"),
        (_answers(401, 401), keyring_s3_key(UPLOAD.project), "the current key was rejected"),
    ],
)
async def test_the_gateway_may_deny_what_the_storage_denied(
    answer: Answer, s3_key: str, message: str
) -> None:
    """For as long as a cache lasts, and of that key alone."""
    later, long_ago = time.monotonic() + 3600, time.monotonic() - 60
    assert (await _read(answer, denied={s3_key: later})).wrong == []
    for denied in ({s3_key: long_ago}, {"another key": later}):
        found = await _read(answer, denied=denied)
        assert any(message in wrong for wrong in found.wrong)


@pytest.mark.parametrize(("knows_marks", "problems"), [(False, 0), (True, 2)])
async def test_a_gateway_may_read_the_marks_first_after_its_start(
    *, knows_marks: bool, problems: int
) -> None:
    """Until then it may accept a keyring that a thief has rolled back."""
    found = await _read(_answers(200, 401), stolen={"amber"}, knows_marks=knows_marks)
    assert len({message.rpartition(": ")[2] for message in found.wrong}) == problems
