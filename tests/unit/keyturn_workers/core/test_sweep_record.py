"""The record of a project as values (SPEC 6.7, 8.5, 8.6)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from keyturn.counts import Counts
from keyturn.messages import RequestOrigin
from keyturn_workers.core.sweep_record import (
    AllRecord,
    CleanEnd,
    KeyRange,
    OpenPage,
    PartEnd,
    ProjectRecord,
    Result,
    State,
    Walk,
    from_json,
    to_json,
)
from tests.unit.keyturn_workers.factories import keyring, snapshot
from tests.unit.keyturn_workers.pipeline.sweep.records import (
    NOW,
    OTHER_ID,
    RESULT,
    ROUND_ID,
    STATE,
    SWEEP,
    ended,
    origin,
    record,
    round_of,
)

COUNTS = Counts(objects=6, rewrapped=2, current=3, plaintext=2, encrypted=1, deleted=1)


@pytest.mark.parametrize(
    "value",
    [
        record(
            replace(SWEEP, actor="ada", digests=("1" * 64, "2" * 64)),
            ended(origin("rotation", OTHER_ID), code="x", failed_at_step=3),
            origin("part", walk_id=ROUND_ID),
            round=round_of(
                OpenPage(0, "a", "b", attempts=2, seen=Counts(objects=1, failed=1)),
                ranges=(KeyRange("a", "m", planned=True), KeyRange("m")),
                proven_from=NOW,
            ),
            clean_end=CleanEnd("{}", STATE, (SWEEP.name,), COUNTS),
            evidence="{}",
        ),
        AllRecord(
            origins=(SWEEP,),
            round=Walk(ROUND_ID, SWEEP.options, (SWEEP.name,), not_found={"acme": 2}),
        ),
        RESULT,
    ],
    ids=["project", "all", "result"],
)
def test_a_value_is_read_as_it_was_written(value: Any) -> None:
    assert from_json(type(value), to_json(value)) == value


@pytest.mark.parametrize("kind", [ProjectRecord, Result])
def test_a_document_of_another_kind_is_refused(kind: type[Any]) -> None:
    with pytest.raises(ValueError, match="fields"):
        from_json(kind, to_json(SWEEP))


def test_the_state_is_that_of_the_keyring_with_its_serial() -> None:
    """A state that was left and came back is another one."""
    ring = replace(keyring(), serial=5)
    before, back = (State.of(snapshot(replace(ring, serial=serial)).keyring) for serial in (5, 7))
    assert before == State(1, ring.current.kek_id, "m1", plaintext=False, serial=5)
    assert before != back


# Counts.


def test_counts_split_into_states_and_writes() -> None:
    assert COUNTS.without_writes() == COUNTS.model_copy(update={"rewrapped": 0, "encrypted": 0})
    assert COUNTS.writes() == Counts(rewrapped=2, encrypted=1)
    assert COUNTS.without_writes() + COUNTS.writes() == COUNTS
    assert COUNTS.writes(Counts(rewrapped=2, objects=9)) == Counts(encrypted=1)


@pytest.mark.parametrize(
    ("change", "all_as_desired"),
    [
        ({}, True),
        ({"foreign": 1}, True),
        ({"objects": 7}, False),
        ({"failed": 1}, False),
        ({"noncurrent_stale": 1}, False),
    ],
)
def test_all_is_as_desired_if_every_object_is_and_nothing_failed(
    change: dict[str, int], *, all_as_desired: bool
) -> None:
    assert COUNTS.model_copy(update=change).all_as_desired is all_as_desired


def test_an_origin_counts_the_round_and_the_writes_since_it_was_added() -> None:
    late = origin(origin_id=OTHER_ID, written_before=Counts(rewrapped=3))
    open_page = OpenPage(0, "", "", seen=Counts(objects=2, current=1, rewrapped=9))
    running = record(
        SWEEP,
        late,
        round=round_of(open_page, proven=Counts(objects=3, current=3)),
        written=Counts(rewrapped=4),
    )
    assert running.counts_of(SWEEP) == Counts(objects=5, current=4, rewrapped=4)
    assert running.counts_of(late) == Counts(objects=5, current=4, rewrapped=1)
    assert replace(running, round=None).counts_of(SWEEP) == Counts(rewrapped=4)
    assert running.counts_of(ended(SWEEP)) == Counts()


def test_an_origin_of_a_walk_counts_the_parts_that_ended() -> None:
    walk = Walk(ROUND_ID, SWEEP.options, (SWEEP.name,), sums=COUNTS)
    assert AllRecord(round=walk).counts_of(SWEEP) == COUNTS
    assert AllRecord(round=walk).counts_of(origin(origin_id=OTHER_ID)) == Counts()
    assert AllRecord().counts_of(SWEEP) == Counts()


def test_a_part_that_failed_counts_as_one_failure() -> None:
    end = ended(SWEEP, clean=False, code="corrupt_object", detail="forged").end
    assert end is not None
    failed = PartEnd.of(replace(end, counts=COUNTS, round_id=ROUND_ID))
    counts = COUNTS + Counts(failed=1)
    assert failed == PartEnd(
        counts, clean=False, round_id=ROUND_ID, code="corrupt_object", detail="forged"
    )
    done = PartEnd.of(replace(end, code="", detail="", clean=True))
    assert done == PartEnd(Counts(), clean=True)


# Origins.


def test_an_origin_is_open_until_it_ended_and_answered_once_that_is_published() -> None:
    unpublished, failed = ended(SWEEP, published=False), ended(SWEEP, code="x")
    assert [(each.is_open, each.is_answered) for each in (SWEEP, unpublished, failed)] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    assert [each.status for each in (SWEEP, unpublished, failed)] == ["running", "done", "failed"]


def test_an_end_answers_each_request_with_its_person() -> None:
    asked = replace(SWEEP, digests=("1" * 64, "2" * 64), actor="ada")
    assert asked.requests == tuple(RequestOrigin("api", each, "ada") for each in asked.digests)


def test_a_publisher_that_repeats_a_request_again_and_again_does_not_fill_the_record() -> None:
    asked = SWEEP
    for number in range(100):
        asked = asked.with_digests((f"{number:064}", f"{number:064}"))
    assert len(asked.digests) == 64
    assert asked.digests[0] == "0" * 64  # the first ones stay
