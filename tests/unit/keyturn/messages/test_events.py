"""Events, reports and audit records carry what their readers see (SPEC 6.7, 8.6, 15.3, 16.1)."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from keyturn.errors import MalformedRequestError
from keyturn.messages import (
    COUNT_FIELDS,
    EVENT_MODELS,
    AuditRecorded,
    CountedEvent,
    RequestOrigin,
    StatusReported,
    StatusView,
    SweepStatus,
    UploadStored,
    WorkerReported,
    body_digest,
    encode,
    encode_audit,
    parse_audit,
    parse_audit_link,
    parse_event,
)
from keyturn.messages.fields import REASON_MAX_CHARACTERS
from tests.unit.keyturn.messages.examples import EVENTS
from tools.generate.examples import SWEEP_ID, audit_records, compact, worker_reports


@given(st.integers(0, 2**53), st.integers(1, 2**53))
def test_events_survive_a_round_trip(size: int, generation: int) -> None:
    valid = next(d for d in EVENTS if d["type"] == "upload.stored")
    event = UploadStored(**(valid | {"size": size, "generation": generation}))
    assert parse_event(encode(event)) == event


@given(st.fixed_dictionaries(dict.fromkeys(COUNT_FIELDS, st.integers(0, 2**53))), st.booleans())
def test_counts_survive_a_round_trip_as_flat_fields(counts: dict[str, int], clean: bool) -> None:
    """The publisher and the reader of a sweep's counts mean the same nine (SPEC 8.6)."""
    for valid in (d for d in EVENTS if "clean" in d):
        encoded = json.dumps(valid | counts | {"clean": clean}).encode()
        event = parse_event(encoded)
        assert isinstance(event, CountedEvent)
        assert json.loads(encode(event)) == json.loads(encoded)


@pytest.mark.parametrize("valid", EVENTS, ids=lambda document: document["type"])
def test_an_origin_is_a_publisher_and_a_digest_together(valid: dict[str, Any]) -> None:
    model = EVENT_MODELS[valid["type"]]
    bare = {name: value for name, value in valid.items() if name not in ("publisher", "request")}
    digest = "0" * 64
    assert model.model_validate(bare).origin is None
    assert model.model_validate(bare | {"publisher": "api"}).origin is None
    assert model.model_validate(bare | {"request": digest}).origin is None
    complete = model.model_validate(bare | {"publisher": "api", "request": digest})
    assert complete.origin == RequestOrigin("api", digest)


def test_a_refusal_alone_may_repeat_a_project_that_cannot_be() -> None:
    for valid in EVENTS:
        document = json.dumps(valid | {"project": "No Project"}).encode()
        if valid["type"].endswith(".rejected"):
            assert parse_event(document).project == "No Project"
        else:
            with pytest.raises(MalformedRequestError, match="project"):
                parse_event(document)


def test_an_unknown_type_is_refused_without_being_repeated() -> None:
    tag = "canary" * 100
    with pytest.raises(MalformedRequestError) as refused:
        parse_event(json.dumps({"type": tag}).encode())
    assert "canary" not in str(refused.value)
    assert "unknown type" in str(refused.value)


# Reports of status (SPEC 16.1).


REPORTS = [document for document in EVENTS if document["type"] == "status.reported"]
ROWS = tuple(name for name, field in StatusReported.model_fields.items() if ", ..." in str(field))


@pytest.mark.parametrize("document", REPORTS, ids=lambda document: document["view"])
def test_what_is_encoded_is_parsed(document: dict[str, Any]) -> None:
    report = parse_event(json.dumps(document).encode())
    assert parse_event(encode(report)) == report
    encoded = json.loads(encode(report))
    for name in ROWS:
        assert _fields_of(encoded.get(name)) >= _fields_of(document.get(name))


def _fields_of(rows: Any) -> set[str]:
    return {name for row in rows or () for name in row}


def test_every_view_has_an_example() -> None:
    views = {document["view"] for document in REPORTS}
    assert views | {"sweep"} == set(get_args(StatusView))  # a `sweep` has the rows of `sweeps`


def test_rows_of_a_later_version_are_read() -> None:
    document = next(d for d in REPORTS if d["view"] == "projects")
    later = document | {"projects": [row | {"region": "eu"} for row in document["projects"]]}
    known = parse_event(json.dumps(document).encode())
    assert parse_event(json.dumps(later).encode()) == known


def test_the_counts_of_an_event_are_one_value() -> None:
    document = next(d for d in EVENTS if d["type"] == "sweep.completed")
    event = parse_event(json.dumps(document).encode())
    assert isinstance(event, CountedEvent)
    assert event.counts.to_json() == {name: document[name] for name in COUNT_FIELDS}


def test_a_report_names_no_key_material() -> None:
    """A bucket's reader knows an id of a KEK; a KEK, a wrap or a DEK is in no field."""
    names = set(json.dumps(StatusReported.model_json_schema()).split('"'))
    assert {"kek_id", "master_key", "earlier_keks"} <= names
    assert not {"kek", "sealed", "dek", "enc-dek-user", "enc-dek-admin"} & names


@pytest.mark.parametrize("rows", [{}, "acme", [1], [{"project": 1}], [{"project": "No Project"}]])
def test_what_are_no_rows_is_refused(rows: Any) -> None:
    document = next(d for d in REPORTS if d["view"] == "projects")
    with pytest.raises(MalformedRequestError, match="projects"):
        parse_event(json.dumps(document | {"projects": rows}).encode())


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_no_number_is_one_that_json_cannot_hold(number: float) -> None:
    """Readers take `1e999` for infinity; what was read must be what can be written."""
    for name in ("rate_per_s", "left_s"):
        with pytest.raises(ValidationError, match=name):
            SweepStatus.model_validate({"sweep_id": SWEEP_ID, "project": "acme", name: number})
    with pytest.raises(ValidationError, match="interval_s"):
        WorkerReported.model_validate(
            worker_reports()["worker.reported"]["running"] | {"interval_s": number}
        )


# Audit records (SPEC 15.3).


RECORDS = audit_records()["audit.recorded"]


def test_previous_is_null_in_the_first_record_alone() -> None:
    first = parse_audit(compact(RECORDS["served"]))
    assert json.loads(encode_audit(first))["previous"] is None
    second = json.loads(encode_audit(parse_audit(compact(RECORDS["derived"]))))
    assert second["previous"] == body_digest(compact(RECORDS["served"]))
    for wrong in ({"counter": 2}, {"previous": "0" * 64}):
        with pytest.raises(MalformedRequestError, match="previous is null"):
            parse_audit_link(compact(RECORDS["served"] | wrong))


def test_the_place_of_a_record_with_an_action_of_the_future_is_read() -> None:
    body = compact(RECORDS["served"] | {"action": "object.teleported", "outcome": "DONE!"})
    with pytest.raises(MalformedRequestError):
        parse_audit(body)
    link = parse_audit_link(body)
    assert (link.process, link.counter) == (RECORDS["served"]["process"], 1)


@pytest.mark.parametrize("body", [b"{}", b"[]", b"\xff", b'{"type": "upload.stored"}'])
def test_what_is_no_record_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        parse_audit_link(body)


@pytest.mark.parametrize(
    "wrong",
    [
        {"reason": "x" * (REASON_MAX_CHARACTERS + 1)},
        {"reason": "two\nlines"},
        {"reason": ""},
        {"actor": "\x1b[2J"},
        {"actor": "x" * 201},
        {"action": "object.looked_at"},
        {"outcome": "it went well"},
        {"project": "Not A Project"},
        {"object_key": "../up"},
    ],
)
def test_a_writer_cannot_make_a_record_that_readers_refuse(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AuditRecorded.model_validate(RECORDS["served"] | wrong)


def test_a_refusal_repeats_no_value() -> None:
    with pytest.raises(MalformedRequestError) as refused:
        parse_audit(compact(RECORDS["served"] | {"action": "a secret in the wrong field"}))
    assert "secret" not in str(refused.value)
