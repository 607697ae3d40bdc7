"""What chaos puts into sources, and that its check of what became of them can fail (SPEC 17)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn_workers.core.source_mapping import Source, Target
from tools.chaos import drop_checks
from tools.chaos.drop_checks import DropState, summary, taken_in
from tools.chaos.drops import (
    CHANGES,
    DROP,
    INGEST,
    KEPT,
    NOTICES,
    Content,
    Drop,
    Written,
    make_drops,
)
from tools.chaos.evidence import Letter, OnBroker
from tools.chaos.plan import SOURCED_PROJECT, Upload, plaintext

if TYPE_CHECKING:
    from collections.abc import Callable

_BY_FIRST = Source(bucket="drop", prefix="in/", project="{first}", key="{rest}", delete=True)
_BY_NAME = Source(bucket="kept", prefix="in/", project=SOURCED_PROJECT, key="{name}")


@pytest.mark.parametrize("total", [100, 3000])
def test_a_seed_makes_the_same_drops_of_every_kind(total: int) -> None:
    drops = make_drops(7, total)
    assert drops == make_drops(7, total)
    assert drops != make_drops(8, total)
    assert len({(drop.source, drop.s3_key) for drop in drops}) == len(drops)
    kinds = Counter((drop.source, drop.notice, drop.change) for drop in drops if drop.has_place)
    assert kinds.keys() == {(s, n, c) for s in (DROP, KEPT) for n in NOTICES for c in CHANGES}
    assert [drop.at for drop in drops] == sorted(drop.at for drop in drops)
    bodies = [plaintext(7, content) for drop in drops for content in drop.contents]
    for drop in drops:
        assert len({plaintext(7, content) for content in drop.contents}) == len(drop.contents)
    assert b"" in bodies
    assert max(map(len, bodies)) > 8 * 1024


def test_each_drop_goes_where_its_source_maps_it() -> None:
    """And the names that must be refused as malformed have no place at all."""
    for drop in make_drops(7, 3000):
        target = (_BY_FIRST if drop.source == DROP else _BY_NAME).target(drop.s3_key)
        if drop.has_place:
            assert {Target(each.project, each.key) for each in drop.contents} == {target}
        else:
            assert (target is None) == (drop.refused in {"malformed_request", ""})


# The check. A content's upload id is its name here.


def _content(upload_id: str, drop: Drop) -> Content:
    upload = next(each for each in drop.contents if each.upload_id == upload_id)
    return Content(drop, upload)


def _drop(source: str, key: str, *ids: str, **more: Any) -> Drop:
    contents = tuple(
        Upload(number, upload_id, SOURCED_PROJECT, key, 10) for number, upload_id in enumerate(ids)
    )
    folder = f"{SOURCED_PROJECT}/" if source == DROP else ""
    return Drop(0, source, f"in/{folder}{key}", contents, "once", **more)


PLAIN = _drop(DROP, "plain", "plain")
OVER = _drop(DROP, "over", "over-1", "over-2", change="overwritten")
TAKEN = _drop(DROP, "taken", "taken-1", "taken-2", change="overwritten once stored")
REMOVED = _drop(DROP, "removed", "removed", change="deleted")
OF_KEPT = _drop(KEPT, "kept", "kept-1", "kept-2", change="overwritten")
BAD = _drop(DROP, "../bad", "bad", refused="malformed_request", has_place=False)
FOREIGN = replace(
    _drop(DROP, "x", "foreign", refused="not_permitted", has_place=False), s3_key="in/amber/x"
)
OUTSIDE = replace(_drop(DROP, "x", "outside", has_place=False), s3_key="out/elm/x")
DROPS = (PLAIN, OVER, TAKEN, REMOVED, OF_KEPT, BAD, FOREIGN, OUTSIDE)
WRITTEN = Written(
    [_content(each.upload_id, drop) for drop in DROPS for each in drop.contents], {REMOVED}
)
STATE = DropState(
    stored={
        "elm/plain": "plain",
        "elm/over": "over-2",
        "elm/taken": "taken-1",
        "elm/kept": "kept-2",
    },
    left={
        "over-1": False,
        "taken-2": True,
        "removed": False,
        "kept-2": True,
        "bad": True,
        "foreign": True,
        "outside": True,
    },
    refused={
        (DROP, TAKEN.s3_key): ("taken-2", "already_exists"),
        (DROP, BAD.s3_key): ("", "malformed_request"),
        (DROP, FOREIGN.s3_key): ("foreign", "not_permitted"),
    },
)


def test_what_is_as_it_must_be_breaks_nothing() -> None:
    assert taken_in(WRITTEN, STATE) == []
    # A deleted object may have been stored before; of an overwritten one only the last counts.
    stored = {**STATE.stored, "elm/removed": "removed"}
    left = {one: there for one, there in STATE.left.items() if one != "removed"}
    assert taken_in(WRITTEN, replace(STATE, stored=stored, left=left)) == []
    # An older version whose delete failed is named by nothing any more.
    for older in ("taken-1", "removed"):
        left = {**STATE.left, older: False}
        assert taken_in(WRITTEN, replace(STATE, stored=stored, left=left)) == []


def _stored(**changes: str | None) -> Callable[[DropState], DropState]:
    def change(state: DropState) -> DropState:
        stored = {**state.stored, **{f"elm/{name}": one for name, one in changes.items()}}
        return replace(state, stored={key: one for key, one in stored.items() if one is not None})

    return change


def _left(name: str, *, there: bool | None) -> Callable[[DropState], DropState]:
    def change(state: DropState) -> DropState:
        left = {**state.left, name: there}
        return replace(state, left={one: each for one, each in left.items() if each is not None})

    return change


def _refused(drop: Drop, upload_id: str, code: str) -> Callable[[DropState], DropState]:
    return lambda state: replace(
        state, refused={**state.refused, (drop.source, drop.s3_key): (upload_id, code)}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_stored(plain=None), "(plain): deleted from its source, and not stored"),
        (_stored(plain=None), "(plain): neither stored nor the current object"),
        (_left("plain", there=True), "(plain): stored, and still in its source"),
        (_left("plain", there=False), "(plain): stored, and still in its source"),
        (_left("taken-1", there=True), "(taken-1): stored, and still in its source"),
        (_stored(plain="another id"), "elm/plain: stored from no source, as another id"),
        (_stored(plain="over-1"), "elm/plain: stored from no source, as over-1"),
        (_stored(forged="forged"), "elm/forged: stored from no source"),
        (_stored(x="foreign"), "elm/x: stored from no source"),
        (_left("over-1", there=None), "(over-1): deleted from its source, and not stored"),
        (_stored(over="over-1"), "(over-2): deleted from its source, and not stored"),
        (_left("taken-2", there=False), "(taken-2): neither stored nor the current object"),
        (_refused(TAKEN, "taken-1", "already_exists"), "(taken-2): left in its source"),
        (_refused(TAKEN, "taken-2", "source_changed"), "with source_changed, not already_exists"),
        (_refused(BAD, "", "unknown_project"), "with unknown_project, not malformed_request"),
        (_left("bad", there=None), "(bad): deleted from its source, and not stored"),
        (_left("outside", there=None), "(outside): deleted from its source, and not stored"),
        (_left("removed", there=True), "(removed): its owner has deleted it"),
        (_stored(kept=None), "(kept-2): left in its source with no code, not stored"),
        (_stored(kept="kept-1"), "(kept-2): left in its source with no code, not already_exists"),
        (_left("kept-2", there=None), "(kept-2): gone from a source that is not deleted from"),
        (lambda state: replace(state, refused={}), "(foreign): left in its source with no code"),
        (lambda state: replace(state, elsewhere=("x",)), "x: stored outside of every project"),
        (lambda _: DropState(), "(plain): neither stored"),
    ],
)
def test_what_was_lost_or_stored_twice_is_found(
    change: Callable[[DropState], DropState], message: str
) -> None:
    assert message in "\n".join(taken_in(WRITTEN, change(STATE)))


def _event(upload_id: str, key: str, **more: Any) -> dict[str, Any]:
    event = {"type": "upload.stored", "publisher": INGEST, "project": SOURCED_PROJECT}
    return {**event, "upload_id": upload_id, "key": key, "size": 10, **more}


EVENTS = [_event(one, key.removeprefix("elm/")) for key, one in STATE.stored.items()]


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (EVENTS, ""),
        (EVENTS[1:], "upload plain: stored, and never reported"),
        ([*EVENTS, _event("removed", "removed")], "removed: reported as stored, and not there"),
        ([*EVENTS, _event("forged", "x")], "a request for an object that was never put"),
        ([*EVENTS[1:], _event("plain", "plain", size=11)], "wrong event"),
        ([*EVENTS[1:], _event("plain", "another")], "wrong event"),
        ([*EVENTS, _event("bad", "", type="upload.rejected", code="corrupt_object")], "refusal"),
    ],
)
def test_events_that_do_not_match_the_buckets_are_found(
    events: list[dict[str, Any]], message: str
) -> None:
    evidence: Any = SimpleNamespace(
        written=WRITTEN, drop_state=STATE, broker=OnBroker(events=events)
    )
    found = "\n".join(drop_checks.drops(evidence))
    assert message in found
    assert bool(message) == bool(found)


def test_only_the_refusal_of_a_content_is_an_expected_dead_letter() -> None:
    evidence: Any = SimpleNamespace(written=WRITTEN)
    for request_id, code, is_expected in (
        ("taken-2", "already_exists", True),
        ("taken-2", "corrupt_object", False),
        ("forged", "already_exists", False),
    ):
        letter = Letter("keyturn.upload.dead", request_id, code)
        assert drop_checks.is_letter_of_drop(evidence, letter) == is_expected


def test_the_report_has_one_line_about_the_sources() -> None:
    assert summary(WRITTEN, STATE) == (
        "11 contents put under 8 keys: 4 stored, 6 only in the sources "
        "(1 already_exists, 1 malformed_request, 1 not_permitted), 1 deleted by their owner; "
        "0 forged notifications"
    )
