"""The record of a sweep as values (SPEC 6.6, 6.7, 8.5)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from keyturn.messages import RequestOrigin
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import (
    KeyRange,
    OpenPage,
    Origins,
    PartResult,
    Plan,
    State,
    SweepRequest,
    from_json,
    merge_origins,
    one_per_publisher,
    to_json,
)

SWEEP_ID = "2f6c9a0e-1111-4111-8111-111111111111"
NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
ONE, AGAIN = RequestOrigin("one", "1" * 64), RequestOrigin("one", "a" * 64)
TWO = RequestOrigin("two", "2" * 64)
STATE = State(2, "9f86d081884c7d65", "m1", plaintext=False, etag="e")
PLAN = Plan(SweepRequest("sweep", SWEEP_ID, "acme", ""), STATE, NOW, NOW)


def test_a_record_is_read_as_it_was_written() -> None:
    plan = replace(
        PLAN,
        origins=(ONE, AGAIN, TWO),
        ranges=(KeyRange("a", "m", planned=True), KeyRange("m")),
        live=(OpenPage(page=0, after="a", last="b", take=2, seen=Counts(objects=1, failed=1)),),
    )
    assert from_json(Plan, to_json(plan)) == plan


def test_a_record_keeps_the_person_who_is_not_compared() -> None:
    named = RequestOrigin("one", "1" * 64, "ada")
    document = to_json(replace(PLAN, origins=(named,)))
    assert [each and each.actor for each in from_json(Plan, document).origins] == ["ada"]
    # As workers before 0.10 wrote it.
    del document["origins"][0]["actor"]
    before = from_json(Plan, document)
    assert [each and each.actor for each in before.origins] == [None]
    assert merge_origins(before.origins, (named,)) == before.origins


def test_a_document_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="fields"):
        from_json(Plan, {"ask": 1})


def test_counts_are_of_proven_pages_and_of_the_last_attempt_at_open_ones() -> None:
    open_page = OpenPage(page=0, after="", last="", seen=Counts(objects=2, current=1, rewrapped=9))
    plan = replace(
        PLAN, live=(open_page,), proven=Counts(objects=3, current=3), written=Counts(rewrapped=4)
    )
    assert plan.counts == Counts(objects=5, current=4, rewrapped=4)


def test_a_failed_part_counts_as_one_failure() -> None:
    failed = replace(PLAN, status="failed", proven=Counts(objects=3, current=3))
    assert PartResult.of(failed) == PartResult(Counts(objects=3, current=3, failed=1), clean=False)


# The requests of a sweep.


def test_origins_are_merged_by_publisher_and_digest() -> None:
    assert merge_origins((ONE,), (ONE, TWO, AGAIN)) == (ONE, TWO, AGAIN)
    # A publisher that requested a sweep of 0.4 gets its end as before.
    assert merge_origins((None,), (ONE,)) == (None, ONE)


def test_a_publisher_that_requests_a_sweep_again_and_again_does_not_fill_the_record() -> None:
    origins: Origins = (TWO,)
    for number in range(100):
        origins = merge_origins(origins, (RequestOrigin("one", f"{number:064}"),))
    assert len(origins) == 1 + 16
    # The end is matched by all but the digest, so the publisher gets it all the same.
    assert [each.publisher for each in one_per_publisher(origins) if each] == ["two", "one"]
