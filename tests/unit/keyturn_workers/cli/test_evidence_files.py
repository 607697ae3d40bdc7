"""Files of evidence: read within bounds, ordered by their chain, and what a chain proves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import typer

from keyturn.evidence import MAX_EVIDENCE_BYTES, Evidence, parse
from keyturn.settings import S3Settings
from keyturn_workers.cli import evidence
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.cli.evidence import (
    EvidenceFile,
    chain_rows,
    evidence_row,
    in_order,
    limits,
    proofs,
    read_bucket,
    read_paths,
)
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.storage_values import Headers
from tests.unit.keyturn.evidence.shared import (
    COUNTS,
    CUSTOMER_KEY,
    FIRST_KEY,
    PUBLIC_KEYS,
    SECOND_KEY,
    chain_of,
    follow,
    public,
)
from tests.unit.keyturn_workers.cli.fakes import use_bucket
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = S3Settings(s3_bucket="memory")
CHAIN = chain_of(*[FIRST_KEY] * 4)
LONG_CHAIN = chain_of(*[FIRST_KEY] * 12)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    made = MemoryStorage()
    use_bucket(monkeypatch, "evidence", made)
    return made


def _plant(storage: MemoryStorage, name: str, body: bytes, project: str = "acme") -> None:
    storage.plant(f".keyturn/evidence/{project}/{name}", body, Headers({}))


async def test_the_bucket_lists_by_name_and_the_chain_orders(storage: MemoryStorage) -> None:
    for number, envelope in enumerate(LONG_CHAIN):
        _plant(storage, f"{number}.json", envelope)
    _plant(storage, "0.json", CHAIN[0], project="acme-2")
    files = await read_bucket(SETTINGS, "acme")
    assert [file.envelope for file in files] == LONG_CHAIN
    assert [file.name for file in files] == [f"{number}.json" for number in range(12)]


async def test_what_is_no_evidence_comes_last_and_is_bounded(storage: MemoryStorage) -> None:
    _plant(storage, "a.json", b"x" * (MAX_EVIDENCE_BYTES * 2))
    _plant(storage, "b.json", CHAIN[0])
    files = await read_bucket(SETTINGS, "acme")
    assert [file.name for file in files] == ["b.json", "a.json"]
    assert files[1].evidence is None
    assert len(files[1].envelope) == MAX_EVIDENCE_BYTES + 1


async def test_an_archived_file_is_listed_and_keeps_no_other_from_being_read(
    storage: MemoryStorage,
) -> None:
    _plant(storage, "a.json", CHAIN[0])
    storage.plant(".keyturn/evidence/acme/b.json", b"x", Headers({}), archived=True)
    files = await read_bucket(SETTINGS, "acme")
    assert [(file.name, file.evidence is None) for file in files] == [
        ("a.json", False),
        ("b.json", True),
    ]


async def test_a_file_that_is_gone_since_the_listing_is_none(storage: MemoryStorage) -> None:
    _plant(storage, "a.json", CHAIN[0])
    storage.fail_next("read", MissingError("NoSuchKey"))
    assert await read_bucket(SETTINGS, "acme") == []


@pytest.mark.parametrize(("limit", "value"), [("_MAX_FILES", 2), ("_MAX_TOTAL_BYTES", 2000)])
async def test_planted_files_do_not_fill_the_memory(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(evidence, limit, value)
    for number in range(4):
        _plant(storage, f"{number}.json", b"x" * 1000)
    with pytest.raises(CommandError, match="too many files under"):
        await read_bucket(SETTINGS, "acme")


def test_a_folder_is_its_json_files_by_name(tmp_path: Path) -> None:
    for name in ("2.json", "1.json", "notes.txt"):
        (tmp_path / name).write_text(name)
    single = tmp_path / "2.json"
    names = [file.name for file in read_paths([single, tmp_path])]
    assert names == [str(single), str(tmp_path / "1.json"), str(single)]


def test_a_path_that_cannot_be_read_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="No such file"):
        read_paths([tmp_path / "missing"])


def test_a_file_that_is_there_twice_stays_twice() -> None:
    files = [EvidenceFile(name, CHAIN[0]) for name in ("a", "b")]
    assert sorted(file.name for file in in_order(files)) == ["a", "b"]


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


def test_a_retired_key_that_is_not_given_is_named_and_leaves_no_gap() -> None:
    files = in_order(_files(*chain_of(FIRST_KEY, SECOND_KEY)), "acme", public(SECOND_KEY))
    rows, _ = chain_rows(files, public(SECOND_KEY), "acme")
    assert [row["state"] for row in rows] == ["unknown_key", "unproven"]


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


def test_what_is_proven_names_the_customer_secret() -> None:
    said = proofs(_one(customer_key=CUSTOMER_KEY))[-2]
    assert CUSTOMER_KEY["secret_id"] in said
    assert f"only acme-kms/{CUSTOMER_KEY['key']} decrypts" in said


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
