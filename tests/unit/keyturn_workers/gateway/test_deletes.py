"""DELETE of an object: what is published, what is refused, what is waited for (SPEC 8.7, 9.3)."""

from __future__ import annotations

import asyncio
import json
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
from tests.unit.keyturn_workers.gateway.serving import DELETES, PATH, Serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn.messages import Event
    from tests.unit.keyturn_workers.gateway.serving import Connection as Response

_AT = "2026-11-24T10:00:00.000000Z"
_WAIT = {"prefer": "wait=9"}


@pytest.fixture
async def serving() -> AsyncIterator[Serving]:
    serving = Serving()
    serving.bench.plant_sealed()
    yield serving
    await serving.deletes.pending.close()


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
    return serving.deletes.pending.in_all


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
    assert not serving.deletes.pending._projects


async def test_nothing_of_the_object_is_written_by_the_gateway(serving: Serving) -> None:
    before = await serving.bench.storage.read(TARGET)
    await _delete(serving)
    assert (await serving.bench.storage.read(TARGET))[1] == before[1]
    assert (await serving.ask(key=API_KEY)).status == 200


# Many keys in one request.


async def _delete_many(serving: Serving, *keys: Any, body: Any = None, **more: Any) -> Response:
    document = {"keys": keys} if body is None else body
    return await serving.ask("POST", DELETES, body=json.dumps(document).encode(), **more)


def _outcomes(request_id: str, *deleted: str, **refused: str) -> dict[str, Any]:
    of: dict[str, Any] = {"request_id": request_id, "project": "acme", "at": _AT}
    events: dict[str, Any] = {key: ObjectDeleted(**of, key=key) for key in deleted}
    for key, code in refused.items():
        events[key] = DeleteRejected(**of, key=key, code=code, detail="said so")
    return events


@pytest.fixture
async def stored(serving: Serving) -> Serving:
    """With the objects a, b and c."""
    for key in "abc":
        serving.bench.plant_sealed(key=key)
    await serving.bench.authenticate()
    return serving


async def test_many_keys_are_one_request(stored: Serving) -> None:
    got = await _delete_many(stored, "a", "b", "none", "c")
    (many,) = stored.publisher.many
    assert got.status == 202
    missing = {"key": "none", "code": "not_found", "detail": "no object has this key"}
    assert got.document() == {"request_id": many["id"], "rejected": [missing]}
    assert (many["project"], many["keys"]) == ("acme", ["a", "b", "c"])


async def test_after_a_wait_each_key_has_its_outcome(stored: Serving) -> None:
    """The event that came last is no outcome of the others."""

    def answer(request_id: str) -> Any:
        outcomes = _outcomes(request_id, "a", "c", b="locked_object")
        stored.publisher.outcomes = outcomes
        return outcomes["b"]

    stored.publisher.answer = answer
    got = await _delete_many(stored, "a", "b", "none", "c", headers=_WAIT)
    assert (got.status, got.headers["preference-applied"]) == (200, "wait=9")
    document = got.document()
    assert document["deleted"] == ["a", "c"]
    refused = [(each["key"], each["code"]) for each in document["rejected"]]
    assert refused == [("none", "not_found"), ("b", "locked_object")]
    assert document["request_id"] == stored.publisher.many[0]["id"]


async def test_outcomes_that_are_not_known_are_a_202(stored: Serving) -> None:
    stored.publisher.answer = lambda request_id: _outcomes(request_id, "a")["a"]
    assert (await _delete_many(stored, "a", "b", headers=_WAIT)).status == 202


async def test_a_refusal_of_the_whole_request_is_its_status(stored: Serving) -> None:
    stored.publisher.answer = _rejected("request_expired")
    got = await _delete_many(stored, "a", "b", headers=_WAIT)
    assert (got.status, got.document()["code"]) == (403, "request_expired")


async def test_keys_without_an_object_are_not_published(stored: Serving) -> None:
    """A key with a tombstone can be deleted again; one that never had an object stays usable."""
    stored.bench.plant(deleted(stored.bench.desired, KEY), b"")
    got = await _delete_many(stored, "x", "y")
    assert (got.status, got.document()["code"]) == (404, "not_found")
    assert got.document()["detail"] == "no object has any of these keys"
    assert (await _delete_many(stored, "x")).document()["detail"] == "no object has this key"
    assert not stored.publisher.many
    assert not _pending(stored)
    assert (await _delete_many(stored, KEY)).status == 202


_TOO_MANY = [f"k{number}" for number in range(1001)]


@pytest.mark.parametrize(
    ("document", "detail"),
    [
        ({}, "keys: Field required"),
        ({"keys": []}, "keys: Tuple should have at least 1 item"),
        ({"keys": _TOO_MANY}, "keys: Tuple should have at most 1000 items"),
        ({"keys": ["a", "a"]}, "keys: keys must be distinct"),
        ({"keys": ["a", "../b"]}, "keys.1: "),
        ({"keys": ["a", 1]}, "keys.1: Input should be a valid string"),
        ({"keys": "abc"}, "keys: "),
        ({"keys": ["a"], "key": "b"}, "key: "),
    ],
)
async def test_a_body_of_another_form_is_malformed(
    stored: Serving, document: Any, detail: str
) -> None:
    got = await _delete_many(stored, body=document)
    assert (got.status, got.document()["code"]) == (400, "malformed_request")
    assert got.document()["detail"].startswith(detail)
    assert not stored.publisher.many
    assert not _pending(stored)


async def test_a_body_of_more_than_2_mib_is_not_read(stored: Serving) -> None:
    got = await _delete_many(stored, *(str(number) + "x" * 4000 for number in range(600)))
    assert (got.status, got.document()["code"]) == (413, "body_too_large")


async def test_the_longest_keys_fit(stored: Serving) -> None:
    keys = [f"{number:03}" + chr(34) * 897 for number in range(1000)]
    assert (await _delete_many(stored, "a", *keys[1:])).status == 202


async def test_many_deletes_have_the_guards_of_one() -> None:
    serving = Serving(delete_allowed=False)
    calls = serving.bench.storage.calls
    assert (await _delete_many(serving, "a", key="kt_" + "x" * 43)).status == 401
    calls.clear()
    got = await _delete_many(serving, "a", body={"nonsense": 1})
    assert (got.status, got.document()["code"]) == (403, "not_permitted")
    assert not calls["read_start"]


async def test_keys_are_counted_and_requests_too(stored: Serving) -> None:
    """A project that has nothing pending may always have one request."""
    assert (await _delete_many(stored, "a", "b", "c", "none")).status == 202
    assert _pending(stored) == 4
    got = await _delete(stored)
    assert (got.status, got.document()["code"]) == (429, "too_many_requests")
    assert (await _delete_many(stored, "a")).status == 429
    assert len(stored.publisher.many) == 1


async def test_no_project_fills_the_queue_with_small_requests() -> None:
    serving = Serving(max_deletes=1000)
    serving.bench.plant_sealed()
    statuses = [(await _delete(serving)).status for _ in range(66)]
    assert statuses == [202] * 64 + [429] * 2
    await serving.deletes.pending.close()


async def test_a_storage_that_cannot_be_read_publishes_nothing(stored: Serving) -> None:
    stored.bench.storage.fail_next("read_start", StorageUnavailableError("SlowDown"))
    got = await _delete_many(stored, "a", "b")
    assert (got.status, got.document()["code"]) == (503, "storage_unavailable")
    assert not stored.publisher.many
    assert not _pending(stored)


async def test_the_pause_after_a_refusal_of_the_broker_holds_for_many_too(stored: Serving) -> None:
    stored.publisher.fails = NotDeliveredError("the broker's user may not write")
    assert (await _delete_many(stored, "a")).status == 503
    stored.publisher.fails = None
    assert (await _delete_many(stored, "a")).status == 503
    assert not stored.publisher.many
