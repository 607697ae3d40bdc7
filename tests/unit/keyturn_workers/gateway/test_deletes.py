"""DELETE of an object: what is published, what is refused, what is waited for (SPEC 8.7, 9.3)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import is_uuid
from keyturn.messages import DeleteRejected, ObjectDeleted
from keyturn.publisher import (
    BrokerUnavailableError,
    NotDeliveredError,
)
from keyturn_workers.gateway import deletes
from keyturn_workers.gateway.publishing import PendingRequests
from keyturn_workers.gateway.request import object_path
from tests.unit.keyturn_workers.factories import deleted
from tests.unit.keyturn_workers.gateway.bench import API_KEY, KEY, TARGET
from tests.unit.keyturn_workers.gateway.serving import PATH, Serving

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


@pytest.mark.parametrize("prefer", ["respond-async", "wait", "wait=x", "wait=-1", 'x="wait=5"'])
async def test_other_preferences_are_ignored(serving: Serving, prefer: str) -> None:
    serving.publisher.answer = _deleted
    got = await _delete(serving, headers={"prefer": prefer})
    assert got.status == 202
    assert "preference-applied" not in got.headers


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


# How many are pending.


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


async def test_nothing_of_the_object_is_written_by_the_gateway(serving: Serving) -> None:
    before = await serving.bench.storage.read(TARGET)
    await _delete(serving)
    assert (await serving.bench.storage.read(TARGET))[1] == before[1]
    assert (await serving.ask(key=API_KEY)).status == 200
