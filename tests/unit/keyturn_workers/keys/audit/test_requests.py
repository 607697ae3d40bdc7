"""What a request was, who asked and how it ended, and nothing that was sealed (SPEC 15.3)."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import GenerationMismatchError, MalformedRequestError, NotPermittedError
from keyturn.messages import RequestOrigin, RotationAccepted, parse_request
from keyturn_workers.keys.audit.requests import (
    NAMED_KEYS_MAX_BYTES,
    REFRESHES_RECORDED_EVERY_S,
    RequestRecorder,
)
from tests.unit.keyturn_workers.keys.audit.memory import Stream, trail_to
from tools.generate.examples import SEALED, compact, requests

if TYPE_CHECKING:
    from keyturn.errors import CodedError
    from keyturn.messages import AuditRecorded, Event

_SECRETS = (
    "upload_sealed_key",
    "inline",
    "enroll_sealed_kek",
    "rotation_sealed_kek",
)
REQUESTS = {name: next(iter(titles.values())) for name, titles in requests().items()}

_AT = "2026-11-26T09:30:00Z"
OF_LETTERS = {"dead_letters.requested"}


async def _served(document: dict[str, Any], event: Event | None = None) -> AuditRecorded:
    stream, body = Stream(), compact(document)
    trail = trail_to(stream)
    async with trail.running():
        origin = RequestOrigin.of("billing", body)
        await RequestRecorder(trail).served(parse_request(body), origin, event)
    (record,) = stream.records
    return record


async def _refused(body: bytes, error: Any) -> AuditRecorded:
    stream = Stream()
    trail = trail_to(stream)
    async with trail.running():
        await RequestRecorder(trail).refused(body, "billing", error)
    (record,) = stream.records
    return record


@pytest.mark.parametrize("name", sorted(REQUESTS.keys() - OF_LETTERS))
async def test_a_served_request_is_named(name: str) -> None:
    document = REQUESTS[name]
    record = await _served(document)
    assert (record.action, record.outcome, record.actor) == ("request.served", "done", "billing")
    assert (record.publisher, record.request_type) == ("billing", name)
    assert record.request == hashlib.sha256(compact(document)).hexdigest()
    assert record.request_id in document.values()
    assert (record.project, record.object_key) == ("acme", document.get("key"))
    shown = record.model_dump_json()
    assert not [name for name in _SECRETS if SEALED[name] in shown]


async def test_a_served_rotation_names_the_generation_that_it_led_to() -> None:
    rotation = REQUESTS["rotation.requested"]
    event = RotationAccepted(
        rotation_id=rotation["rotation_id"], project="acme", generation=4, at=_AT
    )
    assert (await _served(rotation, event)).generation == 4
    assert (await _served(rotation)).generation is None


async def _records_of_delete(keys: list[str], error: CodedError | None) -> list[AuditRecorded]:
    many = {name: v for name, v in REQUESTS["delete.requested"].items() if name != "key"}
    stream, body = Stream(), compact(many | {"keys": keys})
    trail = trail_to(stream)
    async with trail.running():
        recorder = RequestRecorder(trail)
        if error is None:
            origin = RequestOrigin.of("billing", body)
            await recorder.served(parse_request(body), origin)
        else:
            await recorder.refused(body, "billing", error)
    return stream.records


async def test_several_objects_are_counted_and_named_in_one_record() -> None:
    (record,) = await _records_of_delete(["a", "b"], None)
    assert (record.object_key, record.object_count, record.first_object) == (None, 2, None)
    assert record.object_keys == ("a", "b")


@pytest.mark.parametrize("error", [None, NotPermittedError()], ids=["served", "refused"])
async def test_the_keys_of_the_longest_request_are_all_named_in_bounded_records(
    error: CodedError | None,
) -> None:
    keys = [f"{number:0900}" for number in range(1000)]
    records = await _records_of_delete(keys, error)
    assert [key for record in records for key in record.object_keys or ()] == keys
    for record in records:
        named = record.object_keys or ()
        assert len("".join(named)) <= NAMED_KEYS_MAX_BYTES
        assert record.object_count == len(keys)
        assert record.first_object == keys.index(named[0]) + 1
    assert len({record.request for record in records}) == 1
    assert len(records) == 56


async def test_a_part_is_full_before_the_next_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyturn_workers.keys.audit.requests.NAMED_KEYS_MAX_BYTES", 5)
    records = await _records_of_delete(["éa", "bc", "def", "much too long", "g"], None)
    assert [(record.first_object, record.object_keys) for record in records] == [
        (1, ("éa", "bc")),
        (3, ("def",)),
        (4, ("much too long",)),
        (5, ("g",)),
    ]


async def test_a_person_is_named_by_the_word_of_the_publisher() -> None:
    record = await _served(REQUESTS["rotation.requested"] | {"actor": "Kim Doe"})
    assert (record.actor, record.publisher) == ("Kim Doe", "billing")


async def test_a_sweep_of_all_projects() -> None:
    assert (await _served(REQUESTS["sweep.requested"] | {"project": "*"})).project == "*"


@pytest.mark.parametrize("name", sorted(OF_LETTERS))
async def test_a_served_request_about_letters_leaves_their_records_alone(name: str) -> None:
    stream, body = Stream(), compact(REQUESTS[name])
    trail = trail_to(stream)
    async with trail.running():
        origin = RequestOrigin.of("console", body)
        await RequestRecorder(trail).served(parse_request(body), origin)
    assert stream.records == []
    refused = await _refused(body, NotPermittedError())
    assert (refused.request_type, refused.project) == (name, "*")
    assert (refused.actor, refused.outcome) == ("Kim Doe", "not_permitted")


async def test_a_refused_request_has_its_code() -> None:
    document = REQUESTS["rotation.requested"]
    record = await _refused(compact(document), GenerationMismatchError("at 4"))
    assert (record.action, record.outcome) == ("request.refused", "generation_mismatch")
    assert (record.project, record.request_id) == ("acme", document["rotation_id"])


async def test_of_a_malformed_request_what_can_be_read_is_recorded() -> None:
    document = REQUESTS["delete.requested"] | {"priority": "high"}
    record = await _refused(compact(document), MalformedRequestError("no"))
    assert (record.project, record.request_type) == ("acme", "delete.requested")
    assert (record.request_id, record.object_key) == (document["request_id"], None)
    odd = json.dumps(document | {"project": "No Project"}).encode()
    assert (await _refused(odd, MalformedRequestError("no"))).project is None


async def test_of_what_cannot_be_read_the_digest_is_recorded() -> None:
    record = await _refused(b"\xff\x00", NotPermittedError())
    assert (record.request, record.actor) == (hashlib.sha256(b"\xff\x00").hexdigest(), "billing")
    assert (record.request_type, record.request_id, record.project) == (None, None, None)


async def test_refreshes_do_not_push_out_what_people_do() -> None:
    stream, now = Stream(), [0.0]
    trail = trail_to(stream)
    recorder = RequestRecorder(trail, clock=lambda: now[0])
    refresh = REQUESTS["status.requested"] | {"project": "acme"}
    refresh.pop("actor", None)
    other_view = "sweeps" if refresh["view"] != "sweeps" else "projects"
    other = {k: v for k, v in refresh.items() if k != "sweep_id"} | {"view": other_view}

    async def serve(document: dict[str, Any], publisher: str = "console") -> int:
        body = compact(document)
        await recorder.served(parse_request(body), RequestOrigin.of(publisher, body))
        return len(stream.records)

    async with trail.running():
        assert await serve(refresh) == 1
        assert await serve(refresh) == 1
        assert await serve(other) == 2
        assert await serve(refresh, "another") == 3
        # What a person asks for is always recorded.
        assert await serve(refresh | {"actor": "kim"}) == 4
        assert await serve(refresh | {"actor": "kim"}) == 5
        now[0] += REFRESHES_RECORDED_EVERY_S
        assert await serve(refresh) == 6
