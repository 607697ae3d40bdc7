"""The state of each file in its chain, and what a chain proves and does not."""

from __future__ import annotations

from typing import Any

import pytest

from keyturn.evidence import Evidence, parse
from keyturn_workers.cli.evidence import EvidenceFile, chain_rows, evidence_row, limits, proofs
from tests.unit.keyturn.evidence.shared import (
    COUNTS,
    FIRST_KEY,
    PUBLIC_KEYS,
    SECOND_KEY,
    chain_of,
    follow,
    public,
)

CHAIN = chain_of(*[FIRST_KEY] * 4)


def _files(*envelopes: bytes) -> list[EvidenceFile]:
    return [EvidenceFile(f"{number}.json", each) for number, each in enumerate(envelopes)]


def _states(*envelopes: bytes, project: str = "acme") -> list[str]:
    rows, _ = chain_rows(_files(*envelopes), PUBLIC_KEYS, project)
    return [row["state"] for row in rows]


def _one(**changes: Any) -> list[Evidence]:
    return [parse(follow([], **changes))]


def test_a_row_says_what_the_file_says() -> None:
    (row,), error = chain_rows(_files(CHAIN[0]), PUBLIC_KEYS, "acme")
    assert error is None
    assert {
        "file": "0.json",
        "state": "verified",
        "digest": parse(CHAIN[0]).digest,
        "signed_by": FIRST_KEY.id,
        "deployment": "default",
        "project": "acme",
        "generation": 3,
        "proven_to": "2026-11-24T10:00:40.000000Z",
        "objects": 7,
        "rewrapped": 5,
        "counts": COUNTS,
        "previous": None,
    }.items() <= row.items()


def test_without_keys_nothing_is_verified() -> None:
    rows, error = chain_rows(_files(CHAIN[0], b"{}"), (), "acme")
    assert [row["state"] for row in rows] == ["not verified", "malformed"]
    assert error is None


@pytest.mark.parametrize(
    ("envelopes", "states"),
    [
        (CHAIN, ["verified"] * 4),
        ([*CHAIN[:2], CHAIN[3]], ["verified", "verified", "cut"]),
        (CHAIN[1:], ["cut", "unproven", "unproven"]),
        ([*CHAIN, CHAIN[1]], ["verified"] * 4 + ["replayed"]),
        ([CHAIN[1], CHAIN[0], *CHAIN[2:]], ["reordered", "unproven", "unproven", "unproven"]),
        ([*CHAIN, b"{}"], ["verified"] * 4 + ["malformed"]),
        # The first error in the chain counts, whichever is noticed first.
        ([CHAIN[0], *CHAIN[2:], b"{}"], ["verified", "cut", "unproven", "unproven"]),
        ([], []),
    ],
)
def test_the_first_error_ends_what_is_verified(envelopes: list[bytes], states: list[str]) -> None:
    assert _states(*envelopes) == states


def test_another_projects_evidence_is_foreign() -> None:
    assert _states(*CHAIN, project="other") == ["foreign", *["unproven"] * 3]


def test_a_key_that_is_not_given_is_named() -> None:
    files = _files(*chain_of(FIRST_KEY, SECOND_KEY))
    rows, error = chain_rows(files, public(FIRST_KEY), "acme")
    assert [row["state"] for row in rows] == ["verified", "unknown_key"]
    assert error is not None
    assert error.index == 1


def test_what_is_no_evidence_has_only_its_name() -> None:
    assert evidence_row(EvidenceFile("x", b"{}"), "malformed") == {
        "file": "x",
        "state": "malformed",
    }


def test_what_is_proven_names_time_state_and_signer() -> None:
    first, second, third, fourth = proofs(_one())
    assert first == (
        "At 2026-11-24T10:00:40.000000Z, each of the 6 encrypted objects of acme was wrapped under "
        "generation 3 (KEK id 9f86d081884c7d65) and master key main."
    )
    assert "None was left under an earlier key" in second
    assert FIRST_KEY.id in third
    assert fourth == "1 deleted object had left a tombstone."


@pytest.mark.parametrize(
    ("changes", "newest", "said"),
    [
        ({}, None, "That this is the newest evidence"),
        ({"late_writes_refused": False}, "ab", "That there were no late writes"),
        ({"counts": COUNTS | {"plaintext": 2}}, "ab", "2 are plaintext"),
    ],
)
def test_what_is_not_proven_is_said(changes: dict[str, Any], newest: str | None, said: str) -> None:
    assert said in limits(_one(**changes), newest)[0]
    assert said not in " ".join(limits(_one(), "ab"))
    assert "`keyturn verify`" in limits(_one(), "ab")[-1]
