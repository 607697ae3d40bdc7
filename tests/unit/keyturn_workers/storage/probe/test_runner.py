"""Each row of the probe can fail, and is documented (SPEC 10)."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keyturn.errors import SettingsError, StorageUnavailableError
from keyturn_workers.core.errors import ClockSkewError, MissingError, RefusedError
from keyturn_workers.core.storage_values import Capabilities, Headers
from keyturn_workers.storage.probe.runner import PREFIX, as_json, probe
from tests.unit.keyturn_workers.storage.probe.broken_storages import (
    ALWAYS,
    EVERYTHING,
    ChecksThenStores,
    HidesNames,
    IgnoresIfAbsent,
    IgnoresIfMatch,
    KeepsMetadata,
    KeysArePaths,
    ListsByPath,
    ListsLate,
    LosesParts,
    OverwritesOnFailure,
    ReadsStale,
    ResumesLate,
    ShowsDeleted,
    StoresCutPuts,
    TakesLateWrites,
)
from tools.harness.memory_storage import MemoryStorage

TEXT = (Path(__file__).parents[5] / "docs" / "operations" / "storage-servers.md").read_text()


@pytest.mark.parametrize(
    ("broken", "rows"),
    [
        (IgnoresIfAbsent, {"put If-None-Match: *", "put If-None-Match: *, many at once"}),
        (IgnoresIfMatch, {"put If-Match", "put If-Match, many at once"}),
        (
            ChecksThenStores,
            {"put If-None-Match: *, many at once", "put If-Match, many at once"},
        ),
        (
            OverwritesOnFailure,
            {
                "put If-None-Match: *",
                "put If-Match",
                "put If-None-Match: *, many at once",
                "put If-Match, many at once",
            },
        ),
        (ShowsDeleted, {"read and list after write"}),
        (KeepsMetadata, {"self-copy replaces metadata"}),
        (LosesParts, {"multipart upload"}),
        (StoresCutPuts, {"put that is cut off stores nothing"}),
        (ResumesLate, {"listing resumes after each key"}),
    ],
)
async def test_a_broken_promise_fails_its_row(broken: type[MemoryStorage], rows: set[str]) -> None:
    """And no other required row."""
    for quick in (True, False):
        report = await probe(broken(), quick=quick)
        assert {row.name for row in report.unsafe} == rows


async def test_stale_reads_fail_their_row() -> None:
    """Stale reads may make other rows fail as well, since these look by reading."""
    report = await probe(ReadsStale())
    assert "read and list after write" in {row.name for row in report.unsafe}


@pytest.mark.parametrize(
    "capabilities",
    [
        ALWAYS,
        replace(ALWAYS, conditional_completion=True),
        replace(ALWAYS, conditional_copy_destination=True),
        replace(ALWAYS, copy_keeps_tags=True),
        EVERYTHING,
    ],
)
async def test_differences_are_measured(capabilities: Capabilities) -> None:
    """What the storage does is what the report says, quick or not."""
    for quick in (True, False):
        report = await probe(MemoryStorage(capabilities=capabilities), quick=quick)
        assert report.capabilities == capabilities
        assert report.unsafe == []


@pytest.mark.parametrize(
    "operations",
    [("put",), ("copy_onto_itself", "copy_conditionally"), ("complete_multipart",)],
    ids=lambda names: names[0],
)
async def test_a_storage_that_takes_late_writes_is_known_as_one(operations: Any) -> None:
    """One kind of write is enough: sweeps say at their end what their proof rests on."""
    for quick in (True, False):
        report = await probe(TakesLateWrites(*operations), quick=quick)
        assert not report.capabilities.late_writes_refused
        assert report.unsafe == []


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize(
    ("broken", "row", "capabilities"),
    [
        (ListsLate, "listing shows overwrites", replace(ALWAYS, listings_show_overwrites=False)),
        (KeysArePaths, "backslashes kept in keys", replace(ALWAYS, keys_are_paths=True)),
        (KeysArePaths, "key beside keys below it", replace(ALWAYS, keys_are_paths=True)),
        (HidesNames, "listing shows every name", replace(ALWAYS, unlisted_names=True)),
    ],
)
async def test_what_cannot_be_relied_on_is_said(
    broken: type[MemoryStorage], row: str, capabilities: Capabilities, *, quick: bool
) -> None:
    """A worker starts all the same, and knows it."""
    report = await probe(broken(), quick=quick)
    assert row in {each.name for each in report.rows if not each.ok}
    assert report.capabilities == capabilities
    assert report.unsafe == []


@pytest.mark.parametrize("quick", [False, True])
async def test_an_order_by_paths_is_known(*, quick: bool) -> None:
    """And is a reason to refuse only a bucket that keeps versions."""
    report = await probe(ListsByPath(), quick=quick)
    assert report.capabilities == replace(ALWAYS, lists_by_path=True)
    rows = {row.name for row in report.rows if not row.ok}
    assert ("listing in byte order" in rows) is not quick
    assert report.unsafe == []
    versioned = await probe(ListsByPath(versioned=True), quick=quick)
    assert [row.name for row in versioned.unsafe] == ["listing resumes after each key"]
    assert "versioned, and not listed by bytes" in versioned.unsafe[0].detail


async def test_a_storage_that_does_everything() -> None:
    """Every row holds, and all of it stood under the probe's own prefix."""
    storage = MemoryStorage(capabilities=EVERYTHING)
    storage.plant("acme/k", b"1", Headers({}))
    report = await probe(storage)
    assert [row.name for row in report.rows if not row.ok] == []
    assert storage.stored_keys() == ["acme/k"]
    assert {row["needed"] for row in as_json(report)} == {"required", "wanted", "info"}
    names = [row.name for row in report.rows]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("quick", [False, True])
async def test_versions_are_reported(*, quick: bool) -> None:
    """A versioned bucket is no failure where conditions hold there, and is said either way."""
    storage = MemoryStorage(versioned=True, capabilities=EVERYTHING)
    report = await probe(storage, quick=quick)
    assert [row.name for row in report.rows if not row.ok] == ["no old versions kept"]
    row = report.rows[-1]
    assert (row.needed, row.detail) == ("info", "versioned, and conditions are honored")
    assert report.unsafe == []
    assert [row async for row in storage.list_versions("")] == []
    report = await probe(IgnoresIfAbsent(versioned=True), quick=quick)
    assert report.rows[-1].detail == "versioned, and the server ignores If-None-Match: * there"
    assert report.unsafe != []


async def test_a_failing_request_fails_its_row_alone() -> None:
    """A row says with which code its requests failed; the others go on."""
    storage = MemoryStorage()
    storage.fail_next("write_tags", StorageUnavailableError("write tags: SlowDown"))
    storage.fail_next("copy_part", RefusedError("copy part: AccessDenied"))
    storage.fail_next("delete_if_match", StorageUnavailableError("delete: NotImplemented"))
    report = await probe(storage)
    details = {row.name: row.detail for row in report.rows if not row.ok}
    assert details["tags kept on self-copy"] == "failed: write tags: SlowDown"
    assert details["multipart copy"] == "failed: copy part: AccessDenied"
    assert details["delete If-Match"] == "failed: delete: NotImplemented"
    # A failure of the storage may pass; a refusal is an answer, and so is 501.
    assert [row.name for row in report.rows if row.undecided] == ["tags kept on self-copy"]
    assert [row.name for row in report.undecided] == ["tags kept on self-copy"]
    assert report.unknown == []
    assert report.unsafe == []


async def test_unreachable() -> None:
    """No report at all: nothing was requested."""
    storage = MemoryStorage()
    storage.fail_next("put", StorageUnavailableError("put: ClientConnectorError"))
    with pytest.raises(StorageUnavailableError):
        await probe(storage)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (RefusedError("put: AccessDenied"), "not write"),
        (StorageUnavailableError("put: NoSuchBucket"), "KEYTURN_S3_BUCKET"),
    ],
)
async def test_settings_at_fault(failure: Exception, words: str) -> None:
    """A bucket that is missing or closed is the settings' fault, said in one line."""
    storage = MemoryStorage()
    storage.fail_next("put", failure)
    with pytest.raises(SettingsError, match=words):
        await probe(storage)


async def test_a_wrong_clock_may_be_set_right_and_is_no_settings_error() -> None:
    """The error names the clock: otherwise a refused write is blamed on the credentials."""
    storage = MemoryStorage()
    storage.fail_next("put", ClockSkewError("put: RequestTimeTooSkewed"))
    with pytest.raises(StorageUnavailableError, match="check this machine's clock"):
        await probe(storage)


async def test_cleaning_up_may_fail() -> None:
    """What was measured is reported all the same, with the prefix that was left."""
    storage = MemoryStorage()
    storage.fail_next("purge", MissingError("purge: NoSuchKey"))
    report = await probe(storage, quick=True)
    assert report.unsafe == []
    assert report.left_behind is not None
    assert report.left_behind.startswith(PREFIX)
    assert all(key.startswith(report.left_behind) for key in storage.stored_keys())


async def test_every_check_is_documented() -> None:
    """With its level, and whether it runs when a worker starts."""
    report = await probe(MemoryStorage())
    quick = {row.name for row in (await probe(MemoryStorage(), quick=True)).rows}
    for row in report.rows:
        start = " yes " if row.name in quick else " "
        assert f"| {row.name} | {row.needed} |{start}|" in TEXT


def test_the_policy_is_valid() -> None:
    """Valid JSON, in which only workers write outside of staging."""
    (policy,) = re.findall(r"```json\n(.*?)```", TEXT, flags=re.DOTALL)
    statements: list[dict[str, Any]] = json.loads(policy)["Statement"]
    for statement in statements:
        writes = "s3:PutObject" in statement["Action"]
        if statement["Effect"] == "Allow" and writes:
            worker = statement["Principal"]["AWS"].endswith("/keyturn-worker")
            assert worker or "/.keyturn/staging/" in statement["Resource"]
    denied = next(s for s in statements if s["Effect"] == "Deny")
    assert denied["NotResource"].endswith("/.keyturn/staging/*")
