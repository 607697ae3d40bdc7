"""What an event carries is what its readers see (SPEC 6.7, 8.6)."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.errors import MalformedRequestError
from keyturn.messages import (
    COUNT_FIELDS,
    EVENT_MODELS,
    CountedEvent,
    RequestOrigin,
    UploadStored,
    encode,
    parse_event,
)
from tests.unit.keyturn.messages.examples import EVENTS


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
