"""What a report of status holds survives its way, and holds no more (SPEC 16.1)."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from keyturn.errors import MalformedRequestError
from keyturn.messages import (
    COUNT_FIELDS,
    CountedEvent,
    StatusReported,
    StatusView,
    SweepStatus,
    WorkerReported,
    encode,
    parse_event,
)
from tests.unit.keyturn.messages.examples import EVENTS
from tools.generate.examples import SWEEP_ID, worker_reports

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
    assert not {"kek", "sealed", "dek", "v0_kek", "enc-dek-user", "enc-dek-admin"} & names


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
