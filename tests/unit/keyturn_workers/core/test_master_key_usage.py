"""What each master key opens; one is called safe to drop only by the whole bucket, at rest."""

from __future__ import annotations

import pytest

from keyturn.messages.status import ObjectGroupStatus
from keyturn_workers.core.master_key_usage import (
    DropVerdict,
    KeyGroup,
    MasterKeyUsage,
    Surroundings,
    census_of,
    judge_drop,
    missing_key,
    missing_keys,
    usage_of,
)

_UNUSED = MasterKeyUsage(objects=0, noncurrent=0, keyrings=0, sweep_records=0, is_active=False)
_AT_REST = Surroundings(running_sweeps=0, unreadable_objects=0, unreadable_records=0)


def test_a_key_that_nothing_uses_is_safe_to_drop() -> None:
    verdict = judge_drop(_UNUSED, _AT_REST)
    assert verdict == DropVerdict(
        may_be_dropped=True, reason="safe to drop: no object and no record uses it"
    )


@pytest.mark.parametrize(
    ("usage", "around", "expected"),
    [
        (
            MasterKeyUsage(1, 0, 0, 0, is_active=False),
            _AT_REST,
            DropVerdict(may_be_dropped=False, reason="in use by 1 object, 0 records"),
        ),
        (
            MasterKeyUsage(0, 2, 0, 0, is_active=False),
            _AT_REST,
            DropVerdict(
                may_be_dropped=False, reason="in use by 0 objects, 2 noncurrent versions, 0 records"
            ),
        ),
        (
            MasterKeyUsage(0, 0, 1, 0, is_active=False),
            _AT_REST,
            DropVerdict(may_be_dropped=False, reason="in use by 0 objects, 1 record"),
        ),
        (
            MasterKeyUsage(0, 0, 0, 0, is_active=True),
            _AT_REST,
            DropVerdict(
                may_be_dropped=False, reason="not safe to drop: it is the active master key"
            ),
        ),
        (
            _UNUSED,
            Surroundings(1, 0, 0),
            DropVerdict(may_be_dropped=False, reason="not safe to drop: 1 sweep is still running"),
        ),
        (
            _UNUSED,
            Surroundings(0, 1, 2),
            DropVerdict(
                may_be_dropped=False,
                reason="not safe to drop: "
                "1 object and 2 records cannot be opened with any available key",
            ),
        ),
        (
            MasterKeyUsage(None, 0, 1, 2, is_active=False),
            _AT_REST,
            DropVerdict(may_be_dropped=None, reason="3 records use it; objects were not counted"),
        ),
        (
            _UNUSED,
            Surroundings(0, 0, 0, project="acme"),
            DropVerdict(may_be_dropped=None, reason="0 objects, 0 records in acme"),
        ),
    ],
)
def test_any_use_or_doubt_forbids_it(
    usage: MasterKeyUsage, around: Surroundings, expected: DropVerdict
) -> None:
    assert judge_drop(usage, around) == expected


def test_a_missing_key_is_named_with_its_records() -> None:
    assert missing_key(1) == "missing from KEYTURN_MASTER_KEYS, but named by 1 record"


_ROWS = (
    ObjectGroupStatus(kind="encrypted", count=5, master_key="m1", generation=1, project="acme"),
    ObjectGroupStatus(kind="encrypted", count=2, master_key="m1", generation=2, project="acme"),
    ObjectGroupStatus(kind="tombstone", count=1, master_key="m1"),
    ObjectGroupStatus(kind="plaintext", count=9),
    ObjectGroupStatus(kind="noncurrent", count=3, master_key="m1"),
    ObjectGroupStatus(kind="keyring", count=1, master_key="m1"),
    ObjectGroupStatus(kind="sweep_record", count=4, master_key="m2"),
    ObjectGroupStatus(kind="unreadable", count=6, code="no_usable_wrap"),
    ObjectGroupStatus(kind="unreadable", count=1, code="bad_seal", record="a"),
    ObjectGroupStatus(
        kind="unreadable", count=2, code="unknown_master_key", record="b", detail="m9"
    ),
)


def test_rows_are_counted_by_kind_and_by_the_key_that_opens_them() -> None:
    census = census_of(_ROWS)
    assert census[KeyGroup("encrypted", "m1")] == 7
    assert usage_of("m1", census, is_active=True) == MasterKeyUsage(8, 3, 1, 0, is_active=True)
    unseen = usage_of("m2", census, is_active=None, with_objects=False)
    assert unseen == MasterKeyUsage(None, 0, 0, 4, is_active=None)
    assert usage_of("m3", census, is_active=False) == _UNUSED


def test_unreadable_objects_and_records_are_counted_apart() -> None:
    assert Surroundings.of(census_of(_ROWS), 1, "acme") == Surroundings(1, 6, 3, "acme")
    assert Surroundings.of({}, 0) == _AT_REST


def test_a_key_is_missing_if_records_name_it_or_it_opened_something() -> None:
    census = census_of(_ROWS)
    assert missing_keys(census, ("m1", "m2")) == {"m9": 2}
    assert missing_keys(census, ()) == {"m1": 1, "m2": 4, "m9": 2}
    assert usage_of("m9", census, is_active=None) == MasterKeyUsage(0, 0, 0, 0, is_active=None)
