"""Four kinds of signed messages: each is read as it was written, and as no other (SPEC 5.5 to 16).

All are signed by one key: an attacker could put any of them on any stream.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from keyturn.errors import MalformedRequestError
from keyturn.messages import (
    EVENT_MODELS,
    KeyringMarked,
    encode,
    encode_audit,
    encode_mark,
    encode_worker_report,
    parse_audit,
    parse_event,
    parse_mark,
    parse_worker_report,
)
from tests.unit.keyturn.messages.examples import EVENTS
from tools.generate.examples import audit_records, compact, marks, worker_reports

if TYPE_CHECKING:
    from collections.abc import Callable


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
