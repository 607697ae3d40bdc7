"""What becomes of a record: its origins, rounds, pages and ends (SPEC 8.4 to 8.6)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from keyturn.counts import Counts
from keyturn.errors import (
    GenerationMismatchError,
    LeaseMismatchError,
    MalformedRequestError,
    StorageUnavailableError,
    TooManyRequestsError,
)
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.sweep_proof import mark_due_pages, with_writes
from keyturn_workers.core.sweep_record import (
    AllRecord,
    CleanEnd,
    End,
    KeyRange,
    Kind,
    Origin,
    ProjectRecord,
    Round,
)
from keyturn_workers.core.sweep_transitions import (
    MAX_OPEN_SWEEPS,
    add_origin,
    begin_round,
    begin_walk,
    check_order,
    check_share,
    choose_origins,
    end_failed,
    end_overtaken,
    end_round,
    end_walk,
    find_origin,
    find_repeated,
    needs_step,
    open_origins,
    reconcile_clock,
    reopen_failed,
    served_origins,
    unpublished_origins,
    with_ends_published,
    with_lease,
    with_pages_unsent,
    with_state,
    without_old_ends,
)
from tests.unit.keyturn_workers.factories import keyring, rotated
from tests.unit.keyturn_workers.pipeline.sweep.records import (
    LATER_ID,
    LEASE_S,
    NOW,
    OTHER_ID,
    PROOF,
    RESULT,
    ROUND_ID,
    SEEN,
    STATE,
    SWEEP,
    SWEEP_ID,
    apply,
    ended,
    origin,
    page,
    record,
    result,
    round_of,
    running,
    the_round,
)

REPAIR = SweepOptions(repair=True)
KEEP_FOR = timedelta(days=8)
A_DAY = timedelta(days=1)
RING = rotated(keyring())
ROTATION = origin("rotation", RING.current.rotation_id)
OTHER = origin(origin_id=OTHER_ID)


def many(number: int, kind: Kind = "sweep", publisher: str = "api") -> tuple[Origin, ...]:
    return tuple(origin(kind, f"{SWEEP_ID[:-3]}{each:03}", publisher) for each in range(number))


def ids(origins: tuple[Origin, ...]) -> list[str]:
    return [each.id for each in origins]


def only(changed: ProjectRecord) -> Origin:
    (found,) = changed.origins
    return found


def end_of(found: Origin) -> End:
    assert found.end is not None
    return found.end


# Origins are added.


def test_an_origin_counts_the_writes_from_its_beginning() -> None:
    late = add_origin(record(SWEEP, written=Counts(rewrapped=7)), OTHER)
    assert [each.written_before.rewrapped for each in late.origins] == [0, 7]


def test_a_repeated_request_adds_its_digest_whatever_became_of_the_first_one() -> None:
    again = replace(SWEEP, digests=("1" * 64,), requested_at="2026-11-25T00:00:00Z")
    for before in (SWEEP, ended(SWEEP, published=False)):
        added = only(add_origin(record(before), again))
        assert added == replace(before, digests=("0" * 64, "1" * 64))
        assert only(add_origin(record(added), again)) == added
    # One that was answered is answered again when the request is served.
    assert only(add_origin(record(ended(SWEEP)), again)) == ended(SWEEP)


@pytest.mark.parametrize(
    "options",
    [
        SweepOptions(repair=True),
        SweepOptions(encrypt_plaintext=True),
        SweepOptions(master_key="m2"),
    ],
    ids=str,
)
def test_the_same_id_with_other_options_is_refused(options: SweepOptions) -> None:
    other = replace(SWEEP, options=options)
    for before in (SWEEP, ended(SWEEP), ended(SWEEP, failed_at_step=3)):
        with pytest.raises(MalformedRequestError):
            find_repeated(record(before), other)
        with pytest.raises(MalformedRequestError):
            add_origin(record(before), other)


@pytest.mark.parametrize(
    "other",
    [
        replace(SWEEP, kind="rotation"),
        replace(SWEEP, publisher="web"),
        replace(SWEEP, kind="part", walk_id=ROUND_ID),
        OTHER,
    ],
    ids=["kind", "publisher", "walk", "id"],
)
def test_an_origin_of_another_name_is_another_one(other: Origin) -> None:
    """An id of one publisher does not keep another, or a rotation, from using it."""
    assert find_repeated(record(SWEEP), replace(other, options=REPAIR)) is None
    assert len(add_origin(record(SWEEP), replace(other, options=REPAIR)).origins) == 2


def test_a_sweep_whose_step_gave_up_is_taken_up_as_the_youngest() -> None:
    """What was proven before does not answer it."""
    failed = ended(SWEEP, clean=False, code="corrupt_object", failed_at_step=3)
    added = add_origin(record(failed, OTHER), replace(SWEEP, digests=("1" * 64,)))
    assert ids(added.origins) == [OTHER_ID, SWEEP_ID]
    assert added.origins[1] == replace(SWEEP, digests=("0" * 64, "1" * 64), is_repeated=True)


def test_a_late_copy_of_a_request_names_no_master_key_after_a_later_one() -> None:
    """Not even if its own end was dropped since."""
    first, later = (
        origin(origin_id=each, options=SweepOptions(master_key=name), requested_at=at)
        for each, name, at in (
            (SWEEP_ID, "m2", "2026-11-24T10:00:00Z"),
            (OTHER_ID, "m1", "2026-11-24T10:00:01Z"),
        )
    )
    after = replace(add_origin(add_origin(record(), first), later), origins=())
    with pytest.raises(GenerationMismatchError):
        check_order(after, first)
    check_order(after, later)
    check_order(after, SWEEP)


def test_a_rotation_that_is_repeated_waits_for_the_next_round() -> None:
    """What was proven before the repetition does not answer it."""
    running = record(SWEEP, ROTATION, round=round_of())
    assert ids(served_origins(running, the_round(running), RING)) == [SWEEP_ID, ROTATION.id]
    repeated = record(SWEEP, replace(ROTATION, is_repeated=True), round=round_of())
    assert ids(served_origins(repeated, the_round(repeated), RING)) == [SWEEP_ID]


def test_a_clean_end_that_is_not_finished_needs_a_step() -> None:
    """The keyring may name its evidence, whose file does not exist yet."""
    made = CleanEnd("{}", STATE, (), Counts())
    assert needs_step(record(ended(SWEEP), clean_end=made))
    assert not needs_step(record(ended(SWEEP)))


def test_writes_count_though_the_round_began_again() -> None:
    counted = with_writes(
        record(written=Counts(rewrapped=1)),
        [replace(RESULT, counts=Counts(encrypted=2, rewrapped=3, objects=5))],
    )
    assert counted.written == Counts(rewrapped=4, encrypted=2)


def test_a_sweep_that_was_overtaken_is_not_taken_up_again() -> None:
    overtaken = ended(SWEEP, clean=False, code="generation_mismatch")
    assert not only(add_origin(record(overtaken), SWEEP)).is_open


def test_a_publisher_has_a_limited_number_of_open_sweeps() -> None:
    full = record(*many(MAX_OPEN_SWEEPS))
    with pytest.raises(TooManyRequestsError, match="16"):
        check_share(full, "api")
    check_share(full, "web")
    check_share(record(*many(MAX_OPEN_SWEEPS - 1), ended(OTHER), ROTATION), "api")
    check_share(record(*many(20, "rotation"), *many(20, "part")), "api")


# Origins that a round serves.


def test_a_round_serves_the_oldest_and_all_with_its_options() -> None:
    repairs = origin(origin_id=LATER_ID, options=REPAIR)
    assert choose_origins(record(ended(SWEEP), OTHER, repairs, ROTATION)) == (OTHER, ROTATION)
    assert choose_origins(record(repairs, OTHER)) == (repairs,)
    assert choose_origins(record(ended(SWEEP))) == ()


def test_what_is_added_while_a_round_runs_waits_for_the_next_one() -> None:
    """No request is answered by a proof that is older than itself."""
    running = record(SWEEP, OTHER, round=round_of())
    assert served_origins(running, round_of(), RING) == (SWEEP,)


@pytest.mark.parametrize(
    ("rotation", "is_served"),
    [
        (ROTATION, True),
        (replace(ROTATION, options=REPAIR), False),
        (origin("rotation", LATER_ID), False),
        (origin("sweep", RING.current.rotation_id), False),
        (ended(ROTATION), False),
    ],
    ids=["proven", "other options", "not in the keyring", "a sweep with its id", "ended"],
)
def test_a_rotation_is_served_by_any_round_that_proves_its_generation(
    rotation: Origin, *, is_served: bool
) -> None:
    served = served_origins(record(SWEEP, rotation), round_of(), RING)
    assert (rotation in served) is is_served


# Origins that fail.


@pytest.mark.parametrize(
    ("asked", "detail"),
    [
        (origin(options=SweepOptions(master_key="m2")), "master key m1"),
        (origin("rotation", LATER_ID), "restored"),
        (origin(options=SweepOptions(master_key="m1")), None),
        (SWEEP, None),
        (ROTATION, None),
        (origin("rotation", RING.history[0].rotation_id), None),
        (origin("part", OTHER_ID, walk_id=ROUND_ID, options=SweepOptions(master_key="m2")), "m1"),
    ],
)
def test_a_request_that_the_keyring_does_not_follow_any_more_has_failed(
    asked: Origin, detail: str | None
) -> None:
    running = record(asked, round=round_of(names=(asked.name,), proven=SEEN))
    after = only(end_overtaken(running, RING, PROOF))
    if detail is None:
        assert after.is_open
        return
    end = end_of(after)
    assert (end.clean, end.code, end.at) == (False, "generation_mismatch", PROOF)
    assert (end.counts, end.failed_at_step) == (SEEN, None)
    assert detail in end.detail


def test_an_origin_that_ended_is_not_overtaken() -> None:
    done = ended(origin(options=SweepOptions(master_key="m2")))
    assert end_overtaken(record(done), RING, PROOF) == record(done)


def test_a_step_that_gives_up_fails_every_open_origin_until_its_message_is_replayed() -> None:
    running = record(
        ended(ROTATION), SWEEP, OTHER, round=round_of(proven=SEEN), written=Counts(rewrapped=2)
    )
    failed = end_failed(running, "corrupt_object", "forged", PROOF)
    assert open_origins(failed) == ()
    assert failed.round is None
    assert failed.origins[0] == ended(ROTATION)
    end = end_of(failed.origins[1])
    assert (end.code, end.detail, end.failed_at_step) == ("corrupt_object", "forged", 3)
    # The failures of this round's pages belong to it. The other one was in no round.
    assert [end_of(each).round_id for each in failed.origins[1:]] == [ROUND_ID, None]
    assert end.counts == SEEN.model_copy(update={"rewrapped": 2})
    taken_up = [replace(each, is_repeated=True) for each in (SWEEP, OTHER)]
    assert reopen_failed(failed).origins == (ended(ROTATION), *taken_up)
    assert reopen_failed(replace(failed, step=4)) == replace(failed, step=4)


def test_a_clean_end_that_is_being_made_answers_no_origin_that_has_failed() -> None:
    """It stays, for the keyring may name its evidence. What is taken up again is proven anew."""
    made = CleanEnd("{}", STATE, (SWEEP.name,), Counts())
    failed = end_failed(record(SWEEP, clean_end=made), "x", "", PROOF)
    assert failed.clean_end == replace(made, origins=())
    assert end_failed(AllRecord(origins=(SWEEP,)), "x", "", PROOF).origins[0].status == "failed"


# Ends that are published, and kept for a while.


def test_ends_are_published_once_and_parts_leave_the_record() -> None:
    part = ended(origin("part", OTHER_ID, walk_id=ROUND_ID), published=False)
    asked = replace(ended(SWEEP, published=False), digests=("1" * 64, "2" * 64))
    before = record(asked, part, ROTATION)
    assert unpublished_origins(before) == (asked, part)
    after = with_ends_published(before, [asked.name, part.name, ROTATION.name])
    assert after.origins == (replace(ended(SWEEP), digests=("1" * 64,)), ROTATION)
    assert unpublished_origins(after) == ()


@pytest.mark.parametrize(
    ("origins", "needs"),
    [((), False), ((ended(SWEEP),), False), ((ended(SWEEP, published=False),), True)],
)
def test_a_record_needs_a_step_while_an_origin_is_not_answered(
    origins: tuple[Origin, ...], *, needs: bool
) -> None:
    assert needs_step(record(*origins)) is needs
    assert needs_step(record(*origins, OTHER))


def test_ends_are_kept_while_a_request_may_be_repeated() -> None:
    kept = record(ended(SWEEP), ended(OTHER, published=False), origin(origin_id=LATER_ID))
    assert without_old_ends(kept, NOW + KEEP_FOR, KEEP_FOR) == kept
    later = without_old_ends(kept, NOW + KEEP_FOR + timedelta(seconds=1), KEEP_FOR)
    assert ids(later.origins) == [OTHER_ID, LATER_ID]


def test_a_bounded_number_of_ends_is_kept_of_each_publisher() -> None:
    others = ended(origin(publisher="web"))
    crowd = tuple(map(ended, many(70)))
    kept = without_old_ends(record(others, *crowd), NOW, KEEP_FOR)
    assert kept.origins == (others, *crowd[-64:])


def test_the_newest_rotation_stays_however_old_it_is() -> None:
    """Without it, the periodic look would take it for one that was lost, and add it again."""
    earlier = ended(origin("rotation", OTHER_ID), clean=True)
    full = record(earlier, ended(ROTATION), *map(ended, many(64)))
    kept = without_old_ends(full, NOW + 9 * KEEP_FOR, KEEP_FOR)
    assert ids(kept.origins) == [ROTATION.id]


def test_rotations_stay_until_a_clean_end_follows_them() -> None:
    """Until then the keyring names them, and each would be added and swept again."""
    unproven = [ended(each, clean=False) for each in many(70, "rotation")]
    late = NOW + KEEP_FOR + A_DAY
    kept = without_old_ends(record(*unproven, ended(OTHER, clean=False)), late, KEEP_FOR)
    assert kept.origins == tuple(unproven)
    clean = ended(OTHER, at=NOW)
    assert ids(without_old_ends(record(*unproven, clean), late, KEEP_FOR).origins) == [
        unproven[-1].id
    ]


# Rounds.


def test_a_new_round_keeps_only_the_writes_and_the_key_ranges() -> None:
    ranges = (KeyRange("f", "f", planned=True), KeyRange("k", ""))
    before = record(
        SWEEP,
        OTHER,
        round=round_of(page(), ranges=ranges, proven=SEEN, proven_from=PROOF, proven_to=PROOF),
        written=Counts(rewrapped=7),
    )
    after = begin_round(before, LATER_ID)
    assert after == replace(before, round=after.round)
    assert the_round(after) == Round(
        LATER_ID,
        SWEEP.options,
        (SWEEP.name, OTHER.name),
        ranges=(KeyRange("", "f"), KeyRange("f", "")),
    )
    assert after.counts_of(SWEEP) == Counts(rewrapped=7)


def test_no_round_begins_for_nobody() -> None:
    assert begin_round(record(ended(SWEEP), round=round_of()), LATER_ID).round is None


def test_another_state_has_its_own_date() -> None:
    state = replace(STATE, generation=3)
    after = with_state(record(SWEEP), state, PROOF, dated=False)
    assert (after.state, after.changed_at, after.is_dated) == (state, PROOF, False)


def test_each_origin_has_its_end_with_the_writes_since_it_was_added() -> None:
    late = replace(OTHER, written_before=Counts(rewrapped=3))
    waits = origin(origin_id=LATER_ID)
    made = CleanEnd("{}", STATE, (), Counts())
    before = record(ended(ROTATION), SWEEP, late, waits, round=round_of(), clean_end=made)
    names = [each.name for each in (ROTATION, SWEEP, late)]
    after = end_round(
        before, names, End(PROOF, clean=True, counts=SEEN), Counts(rewrapped=4, encrypted=1)
    )
    assert after.origins[0] == ended(ROTATION)
    assert [end_of(each).counts for each in after.origins[1:3]] == [
        SEEN.model_copy(update={"rewrapped": 4, "encrypted": 1}),
        SEEN.model_copy(update={"rewrapped": 1, "encrypted": 1}),
    ]
    assert open_origins(after) == (waits,)
    assert (after.round, after.clean_end) == (None, None)


def test_a_walk_serves_the_oldest_and_those_with_its_options() -> None:
    repairs = origin(origin_id=LATER_ID, options=REPAIR)
    begun = begin_walk(AllRecord(origins=(SWEEP, repairs, OTHER)), ROUND_ID)
    walk = begun.round
    assert walk is not None
    assert (walk.id, walk.options, walk.origins) == (
        ROUND_ID,
        SWEEP.options,
        (SWEEP.name, OTHER.name),
    )
    end = End(PROOF, clean=True, counts=SEEN)
    after = end_walk(begun, walk, end)
    assert after.round is None
    assert [each.end for each in after.origins] == [end, None, end]
    assert find_origin(after, repairs.name) == repairs


# Leases.


def test_a_longer_lease_is_written_into_the_record_and_begins_the_round_again() -> None:
    """What that worker writes may arrive later than the pages so far were held against."""
    after, begins_again = with_lease(running(page()), 60, None, PROOF)
    assert begins_again
    assert (after.lease_s, after.stepped_lease_s, after.changed_at) == (60, 60, NOW)
    assert after.proof_after == NOW + timedelta(seconds=120)


def test_the_longest_lease_of_the_keyrings_writers_counts() -> None:
    after, begins_again = with_lease(running(page()), LEASE_S, 60, PROOF)
    assert (after.lease_s, after.stepped_lease_s, begins_again) == (60, LEASE_S, True)
    # It continues by that lease, since no worker with that lease makes steps.
    assert with_lease(after, LEASE_S, 60, PROOF) == (after, False)


def test_a_worker_with_a_shorter_lease_leaves_the_round_to_others() -> None:
    before = running(page(), lease_s=60, stepped_lease_s=60, stepped_at=NOW)
    with pytest.raises(LeaseMismatchError, match="60 s"):
        with_lease(before, LEASE_S, 60, NOW + timedelta(minutes=15))


def test_an_abandoned_round_continues_by_its_own_lease() -> None:
    """Else one whose lease was shortened everywhere would never end."""
    before = running(page(), lease_s=60, stepped_lease_s=60, stepped_at=NOW)
    after, begins_again = with_lease(before, LEASE_S, 60, NOW + timedelta(minutes=15, seconds=1))
    assert (after.lease_s, after.stepped_lease_s, begins_again) == (60, LEASE_S, False)
    later = replace(after, stepped_at=PROOF)
    assert with_lease(later, LEASE_S, 60, PROOF) == (later, False)


@pytest.mark.parametrize(("seconds", "lease_s"), [(120, 60), (121, LEASE_S)])
def test_between_rounds_a_shorter_lease_counts_once_no_write_by_the_longer_is_left(
    seconds: int, lease_s: int
) -> None:
    rests = record(SWEEP, lease_s=60, stepped_lease_s=60)
    after, begins_again = with_lease(rests, LEASE_S, None, NOW + timedelta(seconds=seconds))
    assert (after.lease_s, after.stepped_lease_s, begins_again) == (lease_s, LEASE_S, False)


# One wrong `Date`.


def test_a_state_dated_after_the_read_is_dated_again() -> None:
    """One `Date` a day ahead must not stall a rotation for a day."""
    after, begins_again = reconcile_clock(running(changed_at=PROOF + A_DAY), PROOF, proves=True)
    assert (after.changed_at, after.is_dated, begins_again) == (PROOF, True, True)


@pytest.mark.parametrize("moments", [(PROOF, NOW), (NOW, PROOF)], ids=["changed", "stepped"])
def test_a_clock_not_known_for_long_dates_no_state_back(moments: tuple[datetime, ...]) -> None:
    """It may be this read that is wrong: a state dated too early would be proven too early."""
    before = running(page(), changed_at=moments[0], stepped_at=moments[1])
    with pytest.raises(StorageUnavailableError):
        reconcile_clock(before, PROOF - timedelta(seconds=1), proves=False)
    assert reconcile_clock(before, PROOF, proves=False) == (before, False)


def test_a_state_is_dated_anew_until_a_read_that_proves_dates_it() -> None:
    """A worker that had just started met a slow front end: pages were proven too early."""
    early, begins_again = reconcile_clock(running(page(), is_dated=False), PROOF, proves=False)
    assert (early.changed_at, early.is_dated, begins_again) == (PROOF, False, False)
    after_two_leases = early.proof_after + timedelta(seconds=1)
    found = {0: result(observed_at=after_two_leases)}
    applied = apply(early, found, after_two_leases)
    assert applied.proven == ()
    assert apply(replace(early, is_dated=True), found, after_two_leases).proven
    # The first read that proves dates it, and pages wait for the proof from then on.
    dated, _ = reconcile_clock(applied.record, after_two_leases, proves=True)
    assert (dated.changed_at, dated.is_dated) == (after_two_leases, True)
    (waiting,) = the_round(dated).open_pages
    assert waiting.not_before is not None
    assert waiting.not_before >= dated.proof_after
    again, _ = reconcile_clock(dated, dated.proof_after, proves=True)
    assert again.changed_at == after_two_leases


def test_a_page_waits_for_no_moment_that_only_a_wrong_date_explains() -> None:
    ahead, soon = PROOF + A_DAY, PROOF + timedelta(minutes=19)
    before = running(
        page(0, sent_at=ahead),
        page(1, sent_at=None, not_before=ahead),
        page(2, sent_at=PROOF),
        page(3, sent_at=None, not_before=soon),
        stepped_at=ahead,
        parts_notified_at=ahead,
    )
    after, _ = reconcile_clock(before, PROOF, proves=True)
    assert [(each.sent_at, each.not_before) for each in the_round(after).open_pages] == [
        (None, None),
        (None, None),
        (PROOF, None),
        (None, soon),
    ]
    assert after.parts_notified_at is None
    assert [each.page for each in mark_due_pages(the_round(after), PROOF)[1]] == [0, 1]


def test_a_record_that_is_resumed_sends_its_pages_again() -> None:
    (again,) = the_round(with_pages_unsent(running(page()))).open_pages
    assert again == page(sent_at=None)
    assert with_pages_unsent(record(SWEEP)) == record(SWEEP)
