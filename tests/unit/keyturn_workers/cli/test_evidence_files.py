"""Files of evidence are bounded, ordered by their chain, and none is skipped in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import typer

from keyturn.evidence import MAX_EVIDENCE_BYTES
from keyturn.settings import S3Settings
from keyturn_workers.cli import evidence
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.cli.evidence import EvidenceFile, in_order, read_bucket, read_paths
from keyturn_workers.errors import MissingError
from keyturn_workers.storage import Headers
from tests.unit.keyturn.evidence.shared import FIRST_KEY, chain_of
from tests.unit.keyturn_workers.cli.memory_bucket import use_bucket
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from pathlib import Path

CHAIN = chain_of(*[FIRST_KEY] * 12, generation=3)
SETTINGS = S3Settings(s3_bucket="memory")


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    made = MemoryStorage()

    use_bucket(monkeypatch, "evidence", made)
    return made


def _plant(storage: MemoryStorage, name: str, body: bytes, project: str = "acme") -> None:
    storage.plant(f".keyturn/evidence/{project}/{name}", body, Headers({}))


async def test_the_bucket_lists_by_name_and_the_chain_orders(storage: MemoryStorage) -> None:
    for number, envelope in enumerate(CHAIN):
        _plant(storage, f"{number}.json", envelope)
    _plant(storage, "0.json", CHAIN[0], project="acme-2")
    files = await read_bucket(SETTINGS, "acme")
    assert [file.envelope for file in files] == CHAIN
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
