"""Rotations over HTTP: published for the holder of the current key, and reported (SPEC 9.5)."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.counts import Counts
from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import format_time, is_uuid, keyring_s3_key
from keyturn.messages import COUNT_FIELDS, RotationRejected
from keyturn.publisher import OutcomeUnknownError
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_record import End, Origin, ProjectRecord, Round, State
from keyturn_workers.gateway import rotations
from keyturn_workers.keys.sweep_records import record_path
from tests.unit.keyturn_workers.factories import MASTER_KEYS
from tests.unit.keyturn_workers.gateway.bench import API_KEY, NEW_API_KEY, ring_of, turned_to
from tests.unit.keyturn_workers.gateway.serving import ROTATIONS, Connection, Serving
from tools.harness.local_keys import build_keyring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


_AT = "2026-11-24T10:00:00.000000Z"
_NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
THIRD_API_KEY = "kt_" + "3" * 43
_ID = "2f6c9a0e-1111-4111-8111-111111111111"


@pytest.fixture
async def serving() -> AsyncIterator[Serving]:
    serving = Serving()
    yield serving
    await serving.rotations.pending.close()


def _ask(api_key: Any = NEW_API_KEY) -> bytes:
    return json.dumps({"api_key": api_key}).encode()


def _rejected(code: str) -> Any:
    return lambda rotation_id: RotationRejected(
        rotation_id=rotation_id, project="acme", code=code, detail="said so", at=_AT
    )


async def _state(serving: Serving, rotation_id: str, key: str = API_KEY) -> dict[str, Any]:
    got = await serving.ask(target=f"{ROTATIONS}/{rotation_id}", key=key)
    assert got.status == 200
    assert got.headers["cache-control"] == "no-store"
    document: dict[str, Any] = got.document()
    assert (document.pop("rotation_id"), document.pop("project")) == (rotation_id, "acme")
    return document


async def test_a_rotation_is_published_expecting_the_callers_generation(serving: Serving) -> None:
    got = await serving.ask("POST", ROTATIONS, body=_ask())
    assert got.status == 202
    (rotation,) = serving.publisher.rotations
    assert rotation == {
        "project": "acme",
        "id": got.document()["rotation_id"],
        "api_key": NEW_API_KEY,
        "generation": 1,
    }
    assert is_uuid(rotation["id"])
    assert got.headers["location"] == f"{ROTATIONS}/{rotation['id']}"
    assert "preference-applied" not in got.headers
    assert await _state(serving, rotation["id"]) == {"state": "requested"}


@pytest.mark.parametrize("host", ["a/b", "a?b", "[", "a:b]", "a#b", ""])
async def test_the_location_does_not_depend_on_the_host_header(serving: Serving, host: str) -> None:
    got = await serving.ask("POST", ROTATIONS, body=_ask(), headers={"host": host})
    assert got.status == 202
    assert got.headers["location"] == f"{ROTATIONS}/{got.document()['rotation_id']}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'"key"',
        b"{",
        b"\xff",
        b"[" * 8000,
        b'{"api_key": NaN}',
        b'{"api_key": null}',
        b'{"api_key": 7}',
        b'{"api_key": ["a"]}',
        b'{"api_key": "\\ud800aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}',
        b'{"API_KEY": "%s"}' % NEW_API_KEY.encode(),
        b'{"api_key": "%s", "more": 1}' % NEW_API_KEY.encode(),
        b'{"api_key": "%s", "api_key": "%s"}' % (NEW_API_KEY.encode(), NEW_API_KEY.encode()),
        _ask("short"),
        _ask("k" * 513),
        _ask("k" * 40 + " "),
        _ask("ü" * 40),
        _ask("kt_" + "k" * 43 + "\n"),
    ],
)
async def test_a_malformed_body_is_refused_without_repeating_the_key(
    serving: Serving, body: bytes
) -> None:
    got = await serving.ask("POST", ROTATIONS, body=body)
    assert (got.status, got.document()["code"]) == (400, "malformed_request")
    assert "connection" not in got.headers  # all of the body was read
    for secret in (NEW_API_KEY, "k" * 40, "short", "aaaaaaa"):
        assert secret not in got.content.decode()
    assert not serving.publisher.rotations


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_malformed_body_is_a_400(body: bytes) -> None:
    async def request() -> None:
        serving = Serving()
        got = await serving.ask("POST", ROTATIONS, body=body)
        assert got.status == 400

    asyncio.run(request())


async def test_a_body_may_arrive_in_pieces_but_is_limited(serving: Serving) -> None:
    body = _ask()
    pieces = [body[at : at + 1] for at in range(len(body))]
    assert (await serving.ask("POST", ROTATIONS, body=pieces)).status == 202
    got = await serving.ask("POST", ROTATIONS, body=[b" " * 8192, b" ", None])
    assert (got.status, got.document()["code"]) == (413, "body_too_large")


async def test_a_client_that_sends_no_body_times_out() -> None:
    serving = Serving(idle_timeout_s=0.02)
    got = await serving.ask("POST", ROTATIONS, body=[b"{", None])
    assert got.status == 408


async def test_the_body_is_not_read_without_the_current_key(serving: Serving) -> None:
    for target, key in ((ROTATIONS, NEW_API_KEY), (ROTATIONS.replace("acme", "other"), API_KEY)):
        for sent in (key, None):
            got = await serving.ask("POST", target, key=sent, body=[None])
            assert (got.status, got.document()["code"]) == (401, "unauthorized")
    assert not serving.publisher.rotations


async def test_a_key_that_the_project_has_or_had_is_refused_at_once(serving: Serving) -> None:
    serving.bench.write_keyring(turned_to(serving.bench.ring, NEW_API_KEY))
    for key in (API_KEY, NEW_API_KEY):
        got = await serving.ask("POST", ROTATIONS, key=NEW_API_KEY, body=_ask(key))
        assert (got.status, got.document()["code"]) == (409, "kek_reused")
        assert key not in got.content.decode()
    # Also where a clean sweep has cleared the KEK itself: its id is kept.
    ring = serving.bench.ring
    cleared = replace(ring, history=(replace(ring.history[0], kek=None),))
    other = Serving()
    other.bench.write_keyring(cleared)
    got = await other.ask("POST", ROTATIONS, key=NEW_API_KEY, body=_ask(API_KEY))
    assert got.status == 409
    assert not serving.publisher.rotations
    assert not other.publisher.rotations


async def test_an_unconfirmed_rotation_is_known_by_its_id(serving: Serving) -> None:
    serving.publisher.fails = OutcomeUnknownError("?")
    rotation_id = (await serving.ask("POST", ROTATIONS, body=_ask())).document()["rotation_id"]
    got = await serving.ask(target=f"{ROTATIONS}/{rotation_id}")
    assert (got.status, got.document()["state"]) == (200, "requested")


# Where the operator forbids it.


async def test_a_forbidden_rotation_is_refused_before_its_body_is_read() -> None:
    """Whatever the body holds: a malformed one, and one that its client announces."""
    serving = Serving(rotation_allowed=False)
    announced = {"expect": "100-continue"}
    for body, headers in ((b"{", {}), ([None], announced)):
        got = await serving.ask("POST", ROTATIONS, body=body, headers=headers)
        assert (got.status, got.document()["code"]) == (403, "not_permitted")


async def test_a_rotation_of_the_operator_is_reported_where_callers_may_not_rotate() -> None:
    serving = Serving(rotation_allowed=False)
    rotation_id = _turn(serving)
    assert (await _state(serving, rotation_id, NEW_API_KEY))["state"] == "accepted"


# How many are under way.


async def test_rotations_without_an_outcome_are_limited(serving: Serving) -> None:
    """They expect the same generation: all but one would end as dead letters."""
    others = ring_of(THIRD_API_KEY, "other")
    serving.bench.storage.plant(
        keyring_s3_key("other"), build_keyring(others, MASTER_KEYS), Headers({})
    )
    for _ in range(3):
        assert (await serving.ask("POST", ROTATIONS, body=_ask())).status == 202
    refused = await serving.ask("POST", ROTATIONS, body=_ask())
    assert (refused.status, refused.document()["code"]) == (429, "too_many_requests")
    assert refused.headers["retry-after"] == "1"
    assert len(serving.publisher.rotations) == 3
    theirs = "/v1/projects/other/rotations"
    assert (await serving.ask("POST", theirs, key=THIRD_API_KEY, body=_ask())).status == 202
    # Answered: another may follow.
    serving.publisher.answer = _rejected("generation_mismatch")
    serving.publisher.telling.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert (await serving.ask("POST", ROTATIONS, body=_ask())).status == 202
    for _ in range(20):
        await asyncio.sleep(0)
    assert not serving.rotations.pending.in_all


async def test_rotations_that_are_being_swept_are_limited() -> None:
    """14 rotations of 51 objects inspected 4,845: each sweep inspects all objects."""
    serving = Serving(max_rotations=2)
    keys = [NEW_API_KEY, THIRD_API_KEY]
    origins: list[Origin] = []
    for number, key in enumerate(keys):
        rotation_id = f"2f6c9a0e-1111-4111-8111-00000000000{number}"
        ring = turned_to(serving.bench.ring, key)
        ring = replace(ring, current=replace(ring.current, rotation_id=rotation_id))
        serving.bench.write_keyring(ring)
        origins.append(_origin(rotation_id))
        await serving.bench.storage.delete(record_path("acme"))
        ended = _origin(_ID, End(_NOW, clean=False, counts=Counts()))
        swept = replace(_origin(_ID), kind="sweep")
        await serving.store.create(_record(serving, *origins, ended, swept), "m1")
        serving.rotations._auth._keyrings._cache.clear()
        got = await serving.ask("POST", ROTATIONS, key=key, body=_ask("kt_" + "4" * 43))
        assert got.status == (202 if number == 0 else 429)
        await serving.rotations.pending.close()  # nothing is pending
    # The newest one ends clean, and clears what the history held: nothing is under way.
    ring = serving.bench.ring
    cleared = tuple(replace(entry, kek=None) for entry in ring.history)
    serving.bench.write_keyring(replace(ring, history=cleared))
    serving.rotations._auth._keyrings._cache.clear()
    got = await serving.ask("POST", ROTATIONS, key=THIRD_API_KEY, body=_ask("kt_" + "4" * 43))
    assert got.status == 202


@pytest.mark.parametrize("status", ["done", "failed", "spoilt", "missing"])
async def test_a_rotation_that_ended_unclean_is_not_in_progress(status: str) -> None:
    """Old KEKs stay until a sweep is clean. A leaked key must be rotatable meanwhile."""
    serving = Serving(max_rotations=1)
    rotation_id = _turn(serving)
    code = "unknown_master_key" if status == "failed" else ""
    end = End(_NOW, clean=False, counts=Counts(), code=code)
    if status != "missing":
        origin = _origin(rotation_id, None if status == "spoilt" else end)
        await serving.store.create(_record(serving, origin), "m1")
    if status == "spoilt":
        serving.bench.storage.plant(record_path("acme"), b"{}", Headers({}))
    got = await serving.ask("POST", ROTATIONS, key=NEW_API_KEY, body=_ask(THIRD_API_KEY))
    assert got.status == 202


# How far it is.


def _origin(rotation_id: str, end: End | None = None) -> Origin:
    return Origin("rotation", rotation_id, "api", _AT, ("0" * 64,), _NOW, end=end)


def _record(serving: Serving, *origins: Origin, proven: Counts | None = None) -> ProjectRecord:
    """The project's record; its round has proven so much for the open origins."""
    desired = serving.bench.desired
    state = State(desired.generation, desired.kek_id, "m1", plaintext=False, serial=1)
    names = tuple(each.name for each in origins if each.is_open)
    current = Round(_ID, origins[0].options, names, proven=proven or Counts())
    written = Counts(rewrapped=2)
    return ProjectRecord(
        "acme", state, _NOW, 15, 15, origins=origins, round=current, written=written
    )


def _turn(serving: Serving) -> str:
    serving.bench.write_keyring(turned_to(serving.bench.ring, NEW_API_KEY))
    return serving.bench.ring.current.rotation_id


async def test_each_status_of_the_record_is_a_state() -> None:
    counts = Counts(objects=3, rewrapped=2, current=3)
    counted = {**counts.to_json(), "clean": False}
    assert set(counted) == {*COUNT_FIELDS, "clean"}
    code, detail = "unknown_master_key", "why"
    ended = End(_NOW, clean=False, counts=counts)
    possible_at = format_time(_NOW + timedelta(seconds=30))
    running = {"phase": "rewrapping", "done": 3, "proof_possible_at": possible_at}
    over = {"progress": {"phase": "ended", "done": 3, "total": 3}}
    cases: list[tuple[End | None, dict[str, Any]]] = [
        (None, {"state": "running", "counts": counted, "progress": running}),
        (
            replace(ended, code=code, detail=detail),
            {"state": "failed", "code": code, "detail": detail},
        ),
        (ended, {"state": "completed", "counts": counted} | over),
        (
            replace(ended, clean=True),
            {"state": "completed", "counts": {**counted, "clean": True}} | over,
        ),
    ]
    for end, expected in cases:
        serving = Serving()
        rotation_id = _turn(serving)
        record = _record(serving, _origin(rotation_id, end), proven=counts.without_writes())
        await serving.store.create(record, "m1")
        assert await _state(serving, rotation_id, NEW_API_KEY) == expected | {"generation": 2}


async def test_a_rotation_that_no_record_has_is_accepted() -> None:
    """Its sweep has not begun, or ended long ago."""
    serving = Serving()
    rotation_id = _turn(serving)
    accepted = {"state": "accepted", "generation": 2}
    assert await _state(serving, rotation_id, NEW_API_KEY) == accepted
    await serving.store.create(_record(serving, _origin(_ID)), "m1")
    assert await _state(serving, rotation_id, NEW_API_KEY) == accepted


async def test_a_sweep_with_the_same_id_is_not_the_rotation() -> None:
    """Another publisher of the project can request a sweep with any id."""
    serving = Serving()
    rotation_id = _turn(serving)
    ended = _origin(rotation_id, End(_NOW, clean=True, counts=Counts()))
    swept = replace(ended, kind="sweep", publisher="other")
    await serving.store.create(_record(serving, swept), "m1")
    state = await _state(serving, rotation_id, NEW_API_KEY)
    assert state == {"state": "accepted", "generation": 2}


async def test_an_earlier_rotation_has_its_own_generation() -> None:
    serving = Serving()
    earlier = _turn(serving)
    serving.bench.write_keyring(turned_to(serving.bench.ring, THIRD_API_KEY))
    assert await _state(serving, earlier, THIRD_API_KEY) == {"state": "accepted", "generation": 2}


async def test_a_rotation_accepted_a_moment_ago_is_found_by_a_second_read(
    serving: Serving,
) -> None:
    """The cached keyring does not have it yet."""
    await serving.ask("POST", ROTATIONS, body=_ask())
    ring = serving.bench.ring
    rotation_id = serving.publisher.rotations[0]["id"]
    await serving.bench.authenticate()
    before = replace(ring.current, rotation_id=rotation_id)
    serving.bench.write_keyring(replace(ring, current=before))
    assert await _state(serving, rotation_id) == {"state": "accepted", "generation": 1}


async def test_the_old_key_is_refused_once_the_rotation_is_accepted(serving: Serving) -> None:
    await serving.ask("POST", ROTATIONS, body=_ask())
    rotation_id = serving.publisher.rotations[0]["id"]
    _turn(serving)
    # Also within the cache's seconds: the second look shows that the key was turned.
    got = await serving.ask(target=f"{ROTATIONS}/{rotation_id}")
    assert got.status == 401


async def test_a_rejection_is_reported_by_the_gateway_that_published(serving: Serving) -> None:
    serving.publisher.answer = _rejected("generation_mismatch")
    await serving.ask("POST", ROTATIONS, body=_ask(), headers={"prefer": "wait=1"})
    rotation_id = serving.publisher.rotations[0]["id"]
    assert await _state(serving, rotation_id) == {
        "state": "rejected",
        "code": "generation_mismatch",
        "detail": "said so",
    }
    elsewhere = Serving(bench=serving.bench)
    got = await elsewhere.ask(target=f"{ROTATIONS}/{rotation_id}")
    assert (got.status, got.document()["code"]) == (404, "not_found")


async def test_a_rotation_of_another_project_is_not_found(serving: Serving) -> None:
    await serving.ask("POST", ROTATIONS, body=_ask())
    rotation_id = serving.publisher.rotations[0]["id"]
    serving.rotations._published[rotation_id].project = "other"
    got = await serving.ask(target=f"{ROTATIONS}/{rotation_id}")
    assert got.status == 404


@pytest.mark.parametrize("rotation_id", ["x", _ID.upper(), _ID + "0", "%00"])
async def test_an_invalid_rotation_id_is_not_found(serving: Serving, rotation_id: str) -> None:
    got = await serving.ask(target=f"{ROTATIONS}/{rotation_id}")
    assert (got.status, got.document()["code"]) == (404, "not_found")
    assert (await serving.ask(target=f"{ROTATIONS}/{rotation_id}", key=None)).status == 401


async def test_a_forged_or_unreadable_record_is_an_error() -> None:
    serving = Serving()
    rotation_id = _turn(serving)
    await serving.store.create(_record(serving, _origin(rotation_id)), "m1")
    await serving.bench.authenticate(NEW_API_KEY)
    serving.bench.storage.fail_next("read", StorageUnavailableError("read: SlowDown"))
    got = await serving.ask(target=f"{ROTATIONS}/{rotation_id}", key=NEW_API_KEY)
    assert (got.status, got.document()["code"]) == (503, "storage_unavailable")
    head, body = await serving.bench.storage.read(record_path("acme"))
    forged = json.loads(body) | {"sealed": "AAAA"}
    serving.bench.storage.plant(record_path("acme"), json.dumps(forged).encode(), head.headers)
    got = await serving.ask(target=f"{ROTATIONS}/{rotation_id}", key=NEW_API_KEY)
    assert (got.status, got.document()["code"]) == (502, "corrupt_object")


async def test_the_memory_of_published_rotations_is_bounded(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotations, "_MAX_PUBLISHED", 3)
    for _ in range(8):
        await serving.ask("POST", ROTATIONS, body=_ask())
    kept = [rotation["id"] for rotation in serving.publisher.rotations[-3:]]
    assert list(serving.rotations._published) == kept


async def test_a_disconnect_while_waiting_does_not_affect_the_rotation(
    serving: Serving,
) -> None:
    connection = Connection()
    asking = asyncio.create_task(
        serving.ask("POST", ROTATIONS, body=_ask(), headers={"prefer": "wait=20"}, on=connection)
    )
    for _ in range(20):
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    (rotation,) = serving.publisher.rotations
    assert await _state(serving, rotation["id"]) == {"state": "requested"}
