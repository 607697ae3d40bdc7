"""A master key is called safe to drop only on the word of the whole bucket, at rest."""

from __future__ import annotations

import pytest

from keyturn_workers.master_key_drop_rule import (
    DropVerdict,
    KeyUsage,
    Surroundings,
    judge_drop,
    missing_key,
)

_UNUSED = KeyUsage(objects=0, noncurrent=0, records=0, is_active=False)
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
            KeyUsage(1, 0, 0, is_active=False),
            _AT_REST,
            DropVerdict(may_be_dropped=False, reason="in use by 1 object, 0 records"),
        ),
        (
            KeyUsage(0, 2, 0, is_active=False),
            _AT_REST,
            DropVerdict(
                may_be_dropped=False, reason="in use by 0 objects, 2 noncurrent versions, 0 records"
            ),
        ),
        (
            KeyUsage(0, 0, 1, is_active=False),
            _AT_REST,
            DropVerdict(may_be_dropped=False, reason="in use by 0 objects, 1 record"),
        ),
        (
            KeyUsage(0, 0, 0, is_active=True),
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
            KeyUsage(None, 0, 3, is_active=False),
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
    usage: KeyUsage, around: Surroundings, expected: DropVerdict
) -> None:
    assert judge_drop(usage, around) == expected


def test_a_missing_key_is_named_with_its_records() -> None:
    assert missing_key(1) == "missing from KEYTURN_MASTER_KEYS, but named by 1 record"
