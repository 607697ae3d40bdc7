"""Which events belong to a request, as tables (SPEC 6.7)."""

from __future__ import annotations

from typing import Any

import pytest

from keyturn.messages import (
    EVENT_MODELS,
    REQUEST_MODELS,
    Event,
    RequestOrigin,
    RotationRequested,
    SealedSecret,
    encode,
    id_field,
)
from keyturn.publisher.event_matcher import EventMatcher, is_answer, is_end
from keyturn.topology import PUBLISHER_EVENTS, REQUESTS
from tools.generate.examples import PUBLISHER

_ID = "c4d9b7aa-1f0e-4a57-b1d2-93e86a7f4c33"
_OTHER_ID = "e0a4c6b8-7d92-4f31-8c55-2b9d0f6e1a74"
_SIGNED_AT = "2026-11-24T10:00:00.000000Z"
_BEFORE, _AFTER = "2026-11-24T09:59:59Z", "2026-11-24T10:00:01Z"
_DIGEST, _EARLIER = "d" * 64, "e" * 64
_ROTATION = RotationRequested(
    rotation_id=_ID,
    project="acme",
    requested_at=_SIGNED_AT,
    sealed_kek=SealedSecret(intake_key="main", ciphertext=""),
)

_ANSWERS = {
    "enroll.requested": ("project.enrolled", "enroll.rejected"),
    "upload.requested": ("upload.stored", "upload.rejected"),
    "rotation.requested": ("rotation.accepted", "rotation.rejected"),
    "sweep.requested": ("sweep.rejected",),
    "delete.requested": ("object.deleted", "delete.rejected"),
    "status.requested": ("status.reported", "status.rejected"),
    "dead_letters.requested": ("dead_letters.moved", "dead_letters.rejected"),
    "recover.requested": ("project.recovered", "recover.rejected"),
    "erase.requested": ("project.erased", "erase.rejected"),
}
# Of all projects, always.
_OF_ALL = (
    "dead_letters.requested",
    "dead_letters.moved",
    "dead_letters.rejected",
)
_VALUES = {
    "clean": True,
    "code": "bad_seal",
    "detail": "",
    "evidence": "e" * 64,
    "key": "a",
    "view": "projects",
    "queue": "keyturn.upload.dead",
    "action": "replay",
}
_REPORTS = {
    "rotation.requested": ("sweep.progressed", "rotation.completed", "rotation.failed"),
    "sweep.requested": ("sweep.progressed", "sweep.completed", "sweep.failed"),
}
_OF_SWEEPS = tuple((r, e) for r, events in _REPORTS.items() for e in events)
_OF_ANSWERS = tuple((r, e) for r, events in _ANSWERS.items() for e in events)


def _event(event_type: str, **fields: Any) -> Event:
    """An event of this type, as the answer to the request of `_matcher`."""
    model = EVENT_MODELS[event_type]
    values: dict[str, Any] = {
        name: _VALUES.get(name, 1) for name, of in model.model_fields.items() if of.is_required()
    }
    project = "*" if event_type in _OF_ALL else "acme"
    values |= {id_field(event_type): _ID, "project": project, "at": _AFTER}
    values |= {"publisher": PUBLISHER, "request": _DIGEST}
    event: Any = model(**values)
    made: Event = event.model_copy(update=fields)
    return made


def _matcher(request_type: str, **fields: Any) -> EventMatcher:
    signed_at = _ROTATION.requested_at_instant
    project = "*" if request_type in _OF_ALL else "acme"
    given: dict[str, Any] = {"publisher": PUBLISHER, "project": project, "digest": _DIGEST}
    given["signed_at"] = signed_at
    return EventMatcher(request_type=request_type, request_id=_ID, **given | fields)


def _without_bytes(request_type: str, **fields: Any) -> EventMatcher:
    return _matcher(request_type, digest=None, signed_at=None, **fields)


def test_the_matcher_of_a_request_is_made_of_what_was_signed() -> None:
    body = encode(_ROTATION)
    matcher = EventMatcher.of(PUBLISHER, _ROTATION, body)
    assert matcher == _matcher(
        "rotation.requested", digest=RequestOrigin.of(PUBLISHER, body).request
    )
    with pytest.raises(ValueError, match="request_type must be one of"):
        EventMatcher(PUBLISHER, "acme", "upload.stored", _ID)


@pytest.mark.parametrize("request_type", REQUESTS)
@pytest.mark.parametrize("event_type", PUBLISHER_EVENTS)
def test_only_events_of_a_requests_own_types_belong_to_it(
    request_type: str, event_type: str
) -> None:
    own = (*_ANSWERS[request_type], *_REPORTS.get(request_type, ()))
    for matcher in (_matcher(request_type), _without_bytes(request_type)):
        # Under the same value of an id, be its field another one.
        assert matcher.matches(_event(event_type)) is (event_type in own)


def test_every_event_belongs_to_a_request_of_some_type() -> None:
    assert {event for _, event in (*_OF_ANSWERS, *_OF_SWEEPS)} == set(PUBLISHER_EVENTS)
    assert set(_ANSWERS) == set(REQUEST_MODELS)


@pytest.mark.parametrize(("request_type", "event_type"), [*_OF_ANSWERS, *_OF_SWEEPS])
@pytest.mark.parametrize(
    "other",
    [{"publisher": "mallory"}, {"project": "bob"}],
    ids=["publisher", "project"],
)
def test_an_event_for_another_publisher_or_project_matches_no_one_else(
    request_type: str, event_type: str, other: dict[str, str]
) -> None:
    event = _event(event_type, **other)
    assert not _matcher(request_type).matches(event)
    assert not _without_bytes(request_type).matches(event)


@pytest.mark.parametrize("event_type", _ANSWERS["delete.requested"])
@pytest.mark.parametrize(("key", "belongs"), [("a", True), ("b", True), ("c", False)])
def test_the_outcome_of_a_key_belongs_to_a_delete_that_names_it(
    event_type: str, key: str, belongs: bool
) -> None:
    event = _event(event_type, key=key)
    matcher = _matcher("delete.requested", keys=frozenset({"a", "b"}))
    assert matcher.matches(event) is belongs
    assert _without_bytes("delete.requested").matches(event)


def test_a_refusal_without_a_key_answers_every_key() -> None:
    matcher = _matcher("delete.requested", keys=frozenset({"a", "b"}))
    assert matcher.matches(_event("delete.rejected", key=None))


@pytest.mark.parametrize(("request_type", "event_type"), [*_OF_ANSWERS, *_OF_SWEEPS])
def test_another_id_is_another_request(request_type: str, event_type: str) -> None:
    event = _event(event_type, **{id_field(event_type): _OTHER_ID})
    assert not _matcher(request_type).matches(event)
    assert not _without_bytes(request_type).matches(event)


@pytest.mark.parametrize(("request_type", "event_type"), _OF_ANSWERS)
def test_an_answer_names_the_very_bytes(request_type: str, event_type: str) -> None:
    earlier = _event(event_type, request=_EARLIER)
    assert not _matcher(request_type).matches(earlier)
    # A reader without the bytes cannot tell the attempts apart.
    assert _without_bytes(request_type).matches(earlier)


@pytest.mark.parametrize(("request_type", "event_type"), [*_OF_ANSWERS, *_OF_SWEEPS])
def test_an_event_without_its_request_matches_none(request_type: str, event_type: str) -> None:
    for missing in ({"publisher": None, "request": None}, {"publisher": None}, {"request": None}):
        event = _event(event_type, **missing)
        assert not _matcher(request_type).matches(event)
        assert not _without_bytes(request_type).matches(event)


@pytest.mark.parametrize(("request_type", "event_type"), _OF_SWEEPS)
def test_progress_and_end_of_a_sweep_belong_to_all_who_requested_it(
    request_type: str, event_type: str
) -> None:
    earlier = _event(event_type, request=_EARLIER)
    assert _matcher(request_type).matches(earlier)
    assert _without_bytes(request_type).matches(earlier)


@pytest.mark.parametrize(("request_type", "event_type"), _OF_SWEEPS)
def test_an_end_from_before_the_request_was_signed_ends_an_earlier_run(
    request_type: str, event_type: str
) -> None:
    earlier = _event(event_type, request=_EARLIER, at=_BEFORE)
    assert _matcher(request_type).matches(earlier) is (event_type == "sweep.progressed")
    assert _matcher(request_type).matches(_event(event_type, request=_EARLIER, at=_SIGNED_AT))
    # Its own end belongs to it whatever a worker's clock says.
    assert _matcher(request_type).matches(_event(event_type, at=_BEFORE))
    assert _without_bytes(request_type).matches(earlier)


@pytest.mark.parametrize(
    ("request_type", "event_type"), [p for p in _OF_ANSWERS if p[1].endswith("rejected")]
)
def test_a_refusal_may_keep_the_project_to_itself(request_type: str, event_type: str) -> None:
    silent = _event(event_type, project=None)
    assert _matcher(request_type).matches(silent)
    assert _without_bytes(request_type).matches(silent)
    assert not _matcher(request_type).matches(silent.model_copy(update={"publisher": "mallory"}))
    assert not _matcher(request_type).matches(silent.model_copy(update={"request": _EARLIER}))


def test_a_sweep_of_all_reports_progress_by_project_and_one_end() -> None:
    for matcher in (
        _matcher("sweep.requested", project="*"),
        _without_bytes("sweep.requested", project="*"),
    ):
        assert matcher.matches(_event("sweep.progressed"))
        for end in ("sweep.completed", "sweep.failed"):
            assert matcher.matches(_event(end, project="*"))
            assert not matcher.matches(_event(end))
        assert matcher.matches(_event("sweep.rejected", project="*"))
        assert not matcher.matches(_event("sweep.rejected"))
    assert not _matcher("sweep.requested").matches(_event("sweep.completed", project="*"))


@pytest.mark.parametrize("event_type", ["sweep.progressed", "sweep.completed", "sweep.failed"])
def test_an_operator_follows_a_sweep_of_any_publisher(event_type: str) -> None:
    matcher = _without_bytes("sweep.requested", publisher=None)
    assert matcher.matches(_event(event_type, publisher="billing"))
    assert matcher.matches(_event(event_type, publisher="console"))
    assert not matcher.matches(_event(event_type, project="bob"))


@pytest.mark.parametrize("event_type", PUBLISHER_EVENTS)
def test_every_event_but_two_ends_its_request(event_type: str) -> None:
    event = _event(event_type)
    assert is_end(event) is (event_type not in ("sweep.progressed", "rotation.accepted"))
    assert is_answer(event) is (event_type != "sweep.progressed")
