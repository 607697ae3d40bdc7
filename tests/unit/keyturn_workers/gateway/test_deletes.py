"""DELETE of an object: what is published, what is refused, what is waited for (SPEC 8.7, 9.3)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import StorageUnavailableError, all_errors
from keyturn.identifiers import is_uuid, keyring_s3_key
from keyturn.messages import DeleteRejected, ObjectDeleted, ProjectEnrolled
from keyturn.publisher import (
    BrokerUnavailableError,
    EventsUnavailableError,
    NotDeliveredError,
    OutcomeUnknownError,
    PublisherError,
)
from keyturn_workers.gateway import deletes
from keyturn_workers.gateway.publishing import PendingRequests
from keyturn_workers.gateway.request import object_path
from keyturn_workers.storage import Headers
from tests.unit.keyturn_workers.factories import MASTER_KEYS, deleted
from tests.unit.keyturn_workers.gateway.asgi import Connection
from tests.unit.keyturn_workers.gateway.bench import API_KEY, KEY, NEW_API_KEY, TARGET, ring_of
from tests.unit.keyturn_workers.gateway.serving import PATH, Serving
from tests.unit.keyturn_workers.gateway.test_problems import STATUSES
from tools.harness.local_keys import build_keyring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn.messages import Event
    from tests.unit.keyturn_workers.gateway.asgi import Connection as Response

_AT = "2026-11-24T10:00:00.000000Z"
_WAIT = {"prefer": "wait=9"}


@pytest.fixture
async def serving() -> AsyncIterator[Serving]:
    serving = Serving()
    serving.bench.plant_sealed()
    yield serving
    await serving.deletes.close()


class _Timers:
    """The releases that were scheduled: when, from the start of the test, and what."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self._began, self._scheduled = loop.time(), list[tuple[float, Callable[[], object]]]()
        call_at = loop.call_at

        def recorded(when: float, callback: Any, *given: Any, **more: Any) -> Any:
            if getattr(callback, "__func__", None) is not PendingRequests.release:
                return call_at(when, callback, *given, **more)
            self._scheduled.append((when, partial(callback, *given)))
            return None

        monkeypatch.setattr(loop, "call_at", recorded)

    def delays_s(self) -> list[float]:
        """The delays, to tens of seconds."""
        return [round(when - self._began, -1) for when, _ in self._scheduled]

    def run(self) -> None:
        for _, release in self._scheduled:
            release()


@pytest.fixture
async def timers(monkeypatch: pytest.MonkeyPatch) -> _Timers:
    return _Timers(asyncio.get_running_loop(), monkeypatch)


def _deleted(request_id: str) -> Event:
    return ObjectDeleted(request_id=request_id, project="acme", key=KEY, at=_AT)


def _rejected(code: str) -> Any:
    return lambda request_id: DeleteRejected(
        request_id=request_id, project="acme", code=code, detail="said so", at=_AT
    )


async def _delete(serving: Serving, target: str = PATH, **more: Any) -> Response:
    return await serving.ask("DELETE", target, **more)


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def _pending(serving: Serving) -> int:
    return serving.deletes._pending.in_all


async def test_a_delete_is_published(serving: Serving) -> None:
    got = await _delete(serving)
    assert got.status == 202
    (delete,) = serving.publisher.deletes
    assert got.document() == {"request_id": delete["id"]}
    assert (delete["project"], delete["key"]) == ("acme", KEY)
    assert is_uuid(delete["id"])
    assert "preference-applied" not in got.headers


async def test_a_key_without_an_object_is_not_found_after_one_read(serving: Serving) -> None:
    await serving.bench.authenticate()
    serving.bench.storage.calls.clear()
    got = await _delete(serving, object_path("acme", "no/such/key"))
    assert (got.status, got.document()["code"]) == (404, "not_found")
    assert len(serving.bench.storage.calls) == 1
    assert not serving.publisher.deletes
    assert not _pending(serving)


async def test_a_tombstone_is_deleted_again(serving: Serving) -> None:
    """The first request may have been lost, or its delete not be final."""
    serving.bench.plant(deleted(serving.bench.desired, KEY), b"")
    assert (await _delete(serving)).status == 202
    assert len(serving.publisher.deletes) == 1


async def test_archived_and_unreadable_objects_are_deleted(serving: Serving) -> None:
    serving.bench.plant_sealed(archived=True)
    assert (await _delete(serving)).status == 202
    serving.bench.plant({"enc-algo": "no such algorithm"}, b"x")
    assert (await _delete(serving)).status == 202


@pytest.mark.parametrize("target", [object_path("acme", KEY) + "/", "%00", "a%ff", "../x"])
async def test_an_invalid_key_is_not_found(serving: Serving, target: str) -> None:
    path = target if target.startswith("/") else f"/v1/projects/acme/objects/{target}"
    got = await _delete(serving, path)
    assert (got.status, got.document()["code"]) == (404, "not_found")
    assert not serving.publisher.deletes


@pytest.mark.parametrize("key", [NEW_API_KEY, None])
@pytest.mark.parametrize("allowed", [True, False])
async def test_only_the_current_key_deletes(*, key: str | None, allowed: bool) -> None:
    """A wrong key learns neither what exists nor how the gateway is set up."""
    serving = Serving(delete_allowed=allowed)
    serving.bench.plant_sealed()
    answers = [
        await _delete(serving, target, key=key)
        for target in (PATH, object_path("acme", "none"), object_path("nobody", "x"))
    ]
    assert {answer.status for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert not serving.publisher.deletes


async def test_where_deletes_are_forbidden_nothing_is_read_or_published() -> None:
    serving = Serving(delete_allowed=False)
    serving.bench.plant_sealed()
    await serving.bench.authenticate()
    serving.bench.storage.calls.clear()
    got = await _delete(serving, headers=_WAIT)
    assert (got.status, got.document()["code"]) == (403, "not_permitted")
    assert "ask the operator" in got.document()["detail"]
    assert not serving.publisher.deletes
    assert not serving.bench.storage.calls
    assert (await serving.ask()).status == 200


async def test_waiting_returns_204_once_the_object_is_deleted(serving: Serving) -> None:
    serving.publisher.answer = _deleted
    got = await _delete(serving, headers=_WAIT)
    assert (got.status, got.content) == (204, b"")
    assert got.headers == {"preference-applied": "wait=9"}


async def test_waiting_returns_the_status_of_a_refusal(serving: Serving) -> None:
    serving.deletes._pending._per_project = 1000
    for code in all_errors():
        serving.publisher.answer = _rejected(code)
        got = await _delete(serving, headers=_WAIT)
        assert (got.status, got.document()["code"]) == (STATUSES[code], code)
        assert got.document()["request_id"] == serving.publisher.deletes[-1]["id"]


async def test_waiting_in_vain_returns_202(serving: Serving) -> None:
    got = await _delete(serving, headers={"prefer": "wait=0"})
    assert (got.status, got.headers["preference-applied"]) == (202, "wait=0")
    assert got.document() == {"request_id": serving.publisher.deletes[0]["id"]}


@pytest.mark.parametrize("case", ["no events", "an unexpected event"])
async def test_an_outcome_that_cannot_be_known_is_a_202(serving: Serving, case: str) -> None:
    if case == "no events":
        serving.publisher.wait_fails = EventsUnavailableError("no stream")
    else:
        serving.publisher.answer = lambda request_id: ProjectEnrolled(
            request_id=request_id, project="acme", generation=1, at=_AT
        )
    assert (await _delete(serving, headers={"prefer": "wait=0"})).status == 202


@pytest.mark.parametrize("prefer", ["respond-async", "wait", "wait=x", "wait=-1", 'x="wait=5"'])
async def test_other_preferences_are_ignored(serving: Serving, prefer: str) -> None:
    serving.publisher.answer = _deleted
    got = await _delete(serving, headers={"prefer": prefer})
    assert got.status == 202
    assert "preference-applied" not in got.headers


@pytest.mark.parametrize(
    ("error", "has_id"),
    [
        (NotDeliveredError("no"), False),
        (OutcomeUnknownError("?"), True),
        (PublisherError("no"), False),
    ],
)
async def test_a_failed_publication_is_a_503(
    serving: Serving, error: Exception, *, has_id: bool
) -> None:
    serving.publisher.fails = error
    got = await _delete(serving)
    assert (got.status, got.headers["retry-after"]) == (503, "1")
    assert ("request_id" in got.document()) is has_id
    assert _pending(serving) == (1 if has_id else 0)  # it may be on its way


async def test_after_the_broker_refused_a_delete_there_is_a_pause(serving: Serving) -> None:
    """Each refusal closes the channel, on which other projects' uploads are being published."""
    began = asyncio.get_running_loop().time()
    serving.publisher.fails = NotDeliveredError("the broker's user may not write")
    assert (await _delete(serving)).status == 503
    serving.publisher.fails = None
    assert (await _delete(serving)).status == 503
    assert not serving.publisher.deletes
    assert (await serving.ask("PUT", object_path("acme", "x"), body=b"x")).status == 202
    assert serving.deletes._paused_until >= began + deletes._PAUSE_S
    serving.deletes._paused_until = asyncio.get_running_loop().time()
    assert (await _delete(serving)).status == 202


async def test_there_is_no_pause_after_a_lost_connection(serving: Serving) -> None:
    serving.publisher.fails = BrokerUnavailableError("away")
    assert (await _delete(serving)).status == 503
    serving.publisher.fails = None
    assert (await _delete(serving)).status == 202


async def test_an_unreadable_storage_is_a_503(serving: Serving) -> None:
    await serving.bench.authenticate()
    serving.bench.storage.fail_next("read_start", StorageUnavailableError("SlowDown"))
    got = await _delete(serving)
    assert (got.status, got.document()["code"]) == (503, "storage_unavailable")
    assert not serving.publisher.deletes
    assert not _pending(serving)


async def test_conditions(serving: Serving) -> None:
    """RFC 9110, 13.1: nothing is deleted if they do not hold."""
    etag = (await serving.ask("HEAD")).headers["etag"]
    for name, value in (
        ("if-match", '"another"'),
        ("if-none-match", "*"),
        ("if-unmodified-since", "Sat, 01 Jan 2000 00:00:00 GMT"),
    ):
        got = await _delete(serving, headers={name: value})
        assert (got.status, "code" in got.document()) == (412, False)
    assert not serving.publisher.deletes
    assert not _pending(serving)
    assert (await _delete(serving, headers={"if-match": etag})).status == 202
    serving.bench.plant(deleted(serving.bench.desired, KEY), b"")
    assert (await _delete(serving, headers={"if-match": "*"})).status == 412


async def test_a_body_is_ignored(serving: Serving) -> None:
    serving.publisher.answer = _deleted
    assert (await _delete(serving, body=[b"what", b"ever"], headers=_WAIT)).status == 204


async def test_a_disconnect_while_waiting_ends_the_wait_alone(serving: Serving) -> None:
    connection = Connection()
    asking = asyncio.create_task(_delete(serving, headers={"prefer": "wait=20"}, on=connection))
    await _settle()
    connection.gone.set()
    async with asyncio.timeout(5):
        await asking
    assert len(serving.publisher.deletes) == 1
    assert _pending(serving) == 1
    assert len(serving.deletes._pending._outcomes) == 1


# How many are pending.


async def test_deletes_without_an_outcome_are_limited(serving: Serving) -> None:
    others = ring_of(NEW_API_KEY, "other")
    serving.bench.storage.plant(
        keyring_s3_key("other"), build_keyring(others, MASTER_KEYS), Headers({})
    )
    theirs = object_path("other", "x")
    serving.bench.storage.plant("other/x", b"x", Headers({}))
    for _ in range(3):
        assert (await _delete(serving)).status == 202
    refused = await _delete(serving)
    assert (refused.status, refused.document()["code"]) == (429, "too_many_requests")
    assert refused.headers["retry-after"] == "1"
    assert len(serving.publisher.deletes) == 3
    assert (await _delete(serving, theirs, key=NEW_API_KEY)).status == 202


async def test_concurrent_deletes_are_limited_too() -> None:
    """Each counts before it reads the storage: they cannot all pass the check at once."""
    serving = Serving()
    serving.bench.plant_sealed()
    answers = await asyncio.gather(*(_delete(serving) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [202] * 3 + [429] * 5
    await serving.deletes.close()


@pytest.mark.parametrize("answer", [_deleted, _rejected("locked_object")])
async def test_an_early_outcome_keeps_its_place_as_long_as_a_real_one(
    serving: Serving, timers: _Timers, answer: Any
) -> None:
    """Deleting one tombstone in a loop would fill the audit trail, a locked object dead letters."""
    serving.publisher.answer = answer
    statuses = [(await _delete(serving, headers=_WAIT)).status for _ in range(5)]
    assert statuses[3:] == [429, 429]
    assert len(serving.publisher.deletes) == 3
    await _settle()
    assert timers.delays_s() == [deletes._MIN_PENDING_S] * 3
    timers.run()
    assert not _pending(serving)
    assert not serving.deletes._pending._projects


async def test_closing_ends_all_waits(serving: Serving) -> None:
    await _delete(serving)
    (outcome,) = serving.deletes._pending._outcomes
    await serving.deletes.close()
    assert outcome.cancelled()
    assert not serving.deletes._pending._outcomes


async def test_nothing_of_the_object_is_written_by_the_gateway(serving: Serving) -> None:
    before = await serving.bench.storage.read(TARGET)
    await _delete(serving)
    assert (await serving.bench.storage.read(TARGET))[1] == before[1]
    assert (await serving.ask(key=API_KEY)).status == 200
