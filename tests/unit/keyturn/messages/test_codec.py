"""Any bytes are a message of one kind or malformed, and a refusal never repeats a value (SPEC 6.3).

The four kinds are signed by one key: an attacker could put any of them on any stream.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.errors import MalformedRequestError
from keyturn.messages import (
    EVENT_BATCH_MAX,
    EVENT_BATCH_MAX_BYTES,
    EVENT_MODELS,
    REQUEST_MODELS,
    KeyringMarked,
    RequestOrigin,
    encode,
    encode_audit,
    encode_batch,
    encode_mark,
    encode_worker_report,
    identity,
    parse_audit,
    parse_batch,
    parse_event,
    parse_mark,
    parse_request,
    parse_traced_event,
    parse_worker_report,
    rejection,
)
from tests.unit.keyturn.messages.examples import EVENTS, REQUESTS
from tools.generate.examples import audit_records, compact, marks, worker_reports

if TYPE_CHECKING:
    from collections.abc import Callable

_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_json_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_as_malformed_and_in_no_other_way(body: bytes) -> None:
    for parse in (parse_request, parse_event, parse_batch):
        with pytest.raises(MalformedRequestError):
            parse(body)
    assert identity(body) is None


@pytest.mark.slow
@given(st.sampled_from(REQUESTS + EVENTS), st.data())
def test_any_json_in_a_field_is_taken_or_refused_as_malformed(
    valid: dict[str, Any], data: st.DataObject
) -> None:
    field = data.draw(st.sampled_from(sorted(valid)))
    body = json.dumps(valid | {field: data.draw(_json_values)}).encode()
    parse: Any = parse_request if valid["type"] in REQUEST_MODELS else parse_event
    message = None
    with suppress(MalformedRequestError):
        message = parse(body)
    if message is not None:
        assert parse(encode(message)) == message
    identity(body)


@pytest.mark.slow
@given(_json_values)
def test_any_json_value_is_refused_as_malformed(value: Any) -> None:
    with pytest.raises(MalformedRequestError):
        parse_request(json.dumps(value).encode())


@pytest.mark.parametrize("valid", REQUESTS + EVENTS, ids=lambda d: d["type"])
def test_examples_survive_a_round_trip(valid: dict[str, Any]) -> None:
    parse: Any = parse_request if valid["type"] in REQUEST_MODELS else parse_event
    message = parse(json.dumps(valid).encode())
    assert parse(encode(message)) == message


@given(st.text(max_size=40))
def test_a_refusal_never_repeats_the_value(secret: str) -> None:
    marked = f"S3CR3T {secret}"
    for field in ("project", "requested_at", "upload_id", "sealed_key", "body", "type"):
        with pytest.raises(MalformedRequestError) as refused:
            parse_request(json.dumps(REQUESTS[0] | {field: marked}).encode())
        assert "S3CR3T" not in str(refused.value)


@pytest.mark.slow
@given(st.sampled_from(REQUESTS), st.data())
def test_whatever_identity_reads_can_be_named_in_a_refusal(
    valid: dict[str, Any], data: st.DataObject
) -> None:
    field = data.draw(st.sampled_from(sorted(valid)))
    body = json.dumps(valid | {field: data.draw(_json_values)}).encode()
    claimed = identity(body)
    if claimed is not None:
        event = rejection(
            *claimed,
            MalformedRequestError("a reason"),
            EVENTS[0]["at"],
            RequestOrigin.of("api", body),
        )
        assert parse_event(encode(event)) == event


@pytest.mark.parametrize(
    ("project", "named"),
    [
        ("\ud800", None),
        ("acme \udfff", None),
        ("p" * 257, None),
        ("p" * 256, "p" * 256),
        ("no project é", "no project é"),
    ],
    ids=["a lone surrogate", "one in a text", "too long", "as long as fits", "another"],
)
def test_a_refusal_names_no_project_that_an_event_cannot_carry(
    project: str, named: str | None
) -> None:
    """Otherwise the request would fail, without an event, each time that it is delivered."""
    body = json.dumps(REQUESTS[0] | {"project": project}).encode()
    with pytest.raises(MalformedRequestError) as refused:
        parse_request(body)
    claimed = identity(body)
    assert claimed is not None
    origin = RequestOrigin.of("api", body)
    event = encode(rejection(*claimed, refused.value, EVENTS[0]["at"], origin))
    assert json.loads(event)["project"] == named


# Batches of events (SPEC 6.7).

_STORED: Final = next(each for each in EVENTS if each["type"] == "upload.stored")
_TRACE: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def _batch(*events: object, **more: object) -> bytes:
    return json.dumps({"type": "upload.stored", "events": list(events), **more}).encode()


@pytest.mark.parametrize("valid", EVENTS, ids=lambda d: d["type"])
def test_a_batch_holds_the_events_that_were_encoded_for_it(valid: dict[str, Any]) -> None:
    event = parse_event(json.dumps(valid).encode())
    body = encode_batch(event.type, [encode(event), encode(event, traceparent=_TRACE)])
    assert [(each.event, each.traceparent) for each in parse_batch(body)] == [
        (event, ""),
        (event, _TRACE),
    ]
    with pytest.raises(MalformedRequestError):
        parse_event(body)
    with pytest.raises(MalformedRequestError):
        parse_batch(encode(event))
    assert json.loads(body).keys() == {"type", "events"}


def test_an_event_alone_carries_its_trace_too() -> None:
    event = parse_event(json.dumps(_STORED).encode())
    assert parse_traced_event(encode(event, traceparent=_TRACE)).traceparent == _TRACE
    assert parse_traced_event(encode(event)).traceparent == ""


@pytest.mark.parametrize(
    "unreadable",
    [
        {**_STORED, "type": "upload.rejected"},
        {**_STORED, "type": "upload.vanished"},
        {name: value for name, value in _STORED.items() if name != "upload_id"},
        _STORED["upload_id"],
        None,
        [_STORED],
    ],
    ids=["another type", "unknown type", "no id", "text", "null", "list"],
)
def test_a_member_that_cannot_be_read_is_skipped_and_the_rest_is_used(unreadable: object) -> None:
    (first, last) = parse_batch(_batch(_STORED, unreadable, {**_STORED, "key": "last"}))
    assert (first.event.key, last.event.key) == (_STORED["key"], "last")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "body",
    [
        _batch(),
        _batch(*[_STORED] * (EVENT_BATCH_MAX + 1)),
        _batch(_STORED, request="also"),
        json.dumps({"events": [_STORED]}).encode(),
        json.dumps({"type": "upload.stored", "events": {"0": _STORED}}).encode(),
        _batch(_STORED) + b" " * EVENT_BATCH_MAX_BYTES,
        b'{"type":"upload.stored","events":[],"events":[]}',
    ],
    ids=["empty", "65", "third field", "no type", "object", "too large", "twice"],
)
def test_what_is_no_batch_is_refused_as_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        parse_batch(body)


def test_a_batch_of_as_many_as_fit_is_read() -> None:
    assert len(parse_batch(_batch(*[_STORED] * EVENT_BATCH_MAX))) == EVENT_BATCH_MAX
    padded = _batch(_STORED)
    assert parse_batch(padded + b" " * (EVENT_BATCH_MAX_BYTES - len(padded)))


# The four kinds: each is read as it was written, and as no other (SPEC 5.5 to 16).


class _Kind(NamedTuple):
    parse: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    examples: list[dict[str, Any]]


KINDS = {
    "event": _Kind(parse_event, encode, EVENTS),
    "audit": _Kind(parse_audit, encode_audit, [*audit_records()["audit.recorded"].values()]),
    "report": _Kind(
        parse_worker_report, encode_worker_report, [*worker_reports()["worker.reported"].values()]
    ),
    "mark": _Kind(parse_mark, encode_mark, [*marks()["keyring.marked"].values()]),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_encoded_is_parsed(name: str) -> None:
    kind = KINDS[name]
    for document in kind.examples:
        message = kind.parse(compact(document))
        assert kind.parse(kind.encode(message)) == message
        if name in ("audit", "mark"):
            assert json.loads(kind.encode(message)) == document


@pytest.mark.parametrize("name", KINDS)
def test_a_message_of_a_later_version_is_read(name: str) -> None:
    kind = KINDS[name]
    for document in kind.examples:
        known = kind.parse(compact(document))
        assert kind.parse(compact(document | {"of_a_later_release": [1]})) == known


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_no_message_is_taken_for_one_of_another_kind(name: str, other: str) -> None:
    documents = KINDS[other].examples
    if name == other:
        documents = [document | {"type": "marks.opened"} for document in documents]
        if name != "audit":  # whose type is a default
            documents += [
                {field: value for field, value in document.items() if field != "type"}
                for document in documents
            ]
    for document in documents:
        with pytest.raises(MalformedRequestError):
            KINDS[name].parse(compact(document))


def test_there_is_an_example_of_every_event() -> None:
    assert {document["type"] for document in EVENTS} == set(EVENT_MODELS)


def test_a_report_of_a_later_version_may_say_more_of_each_queue() -> None:
    document = KINDS["report"].examples[0]
    queues = [queue | {"rate": 1.5} for queue in document["queues"]]
    known = parse_worker_report(compact(document))
    assert parse_worker_report(compact(document | {"queues": queues})) == known


def test_a_mark_is_small() -> None:
    """The stream has no bound: docs/operations/capacity.md counts about 400 bytes a mark."""
    document = KINDS["mark"].examples[0] | {"project": "p" * 40, "serial": 10**6}
    assert len(encode_mark(KeyringMarked.model_validate(document))) < 350
