"""A project is read once and not changed, and what tried nothing proves nothing."""

from __future__ import annotations

import ast
import asyncio
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import keyturn_workers.offline.verify
from keyturn.crypto import admin_kek
from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.errors import MissingError, RefusedError
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.offline.verify.object_check import ObjectCheck, VerificationKeys
from keyturn_workers.offline.verify.project_check import check_project
from keyturn_workers.offline.verify.report import Expectation, Finding, VerifyReport
from tests.unit.keyturn_workers.factories import MASTER_KEYS, enc, keyring, rotated, sealed_object
from tests.unit.keyturn_workers.hiding import PLACES, hide
from tools.harness.local_keys import desired_state
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.core.keyring import Keyring

FIRST = keyring()
SECOND = rotated(FIRST)
OTHER = keyring("acme-2")
OPENED = ObjectCheck("encrypted", "opened")
CLOSED = ObjectCheck("encrypted", "closed", "no_usable_wrap", "no")
CORRUPT = ObjectCheck("encrypted", "failed", "corrupt_object", "bad")
PLAINTEXT = ObjectCheck("plaintext", "unchecked")
TOMBSTONE = ObjectCheck("tombstone", "unchecked")
FOREIGN = ObjectCheck("foreign", "unchecked")
SUSPICIOUS = ObjectCheck("plaintext", "failed", "corrupt_object", "an unknown name")


def _keys(ring: Keyring) -> VerificationKeys:
    kek = ring.current.kek
    assert kek is not None
    return VerificationKeys(ring.project, "user", {"": kek})


def _put(storage: MemoryStorage, ring: Keyring, key: str, *, archived: bool = False) -> None:
    wraps, body = sealed_object(desired_state(ring, MASTER_KEYS), key)
    storage.plant(f"{ring.project}/{key}", body, Headers(enc(wraps)), archived=archived)


async def _check(
    storage: MemoryStorage, keys: VerificationKeys, concurrency: int = 4
) -> VerifyReport:
    report = VerifyReport()
    await check_project(storage, keys, report, concurrency=concurrency)
    return report


async def test_only_the_projects_objects_are_read_once_each() -> None:
    storage = MemoryStorage()
    for ring in (FIRST, OTHER):
        for number in range(50):
            _put(storage, ring, f"k{number}")
    storage.plant(".keyturn/keyrings/acme.json", b"{}", Headers({}))
    report = await _check(storage, _keys(FIRST))
    assert report.verdict == "the key opens all of 50 wraps"
    assert storage.calls == {"versioning": 1, "list": 1, "read_start": 50}


async def test_an_admin_kek_checks_the_same_objects() -> None:
    storage = MemoryStorage()
    _put(storage, FIRST, "a")
    keks = {"m1": admin_kek(MASTER_KEYS["m1"].reveal(), "acme")}
    report = await _check(storage, VerificationKeys("acme", "admin", keks))
    assert report.verified


async def test_an_object_under_an_old_key_is_found() -> None:
    storage = MemoryStorage()
    _put(storage, FIRST, "old")
    _put(storage, SECOND, "new")
    report = await _check(storage, _keys(SECOND))
    assert [(f.s3_key, f.state, f.code) for f in report.findings] == [
        ("acme/old", "closed", "no_usable_wrap")
    ]


async def test_noncurrent_versions_are_checked_by_their_ids() -> None:
    storage = MemoryStorage(versioned=True)
    _put(storage, FIRST, "k")
    _put(storage, SECOND, "k")
    await storage.delete("acme/k")  # another program's: a delete marker
    _put(storage, SECOND, "other")
    report = await _check(storage, _keys(SECOND))
    counts = report.counts
    assert (counts["objects"], counts["opened"]) == (1, 1)
    assert (counts["noncurrent_opened"], counts["noncurrent_closed"]) == (1, 1)
    assert [(f.s3_key, f.version) for f in report.findings] == [("acme/k", "v000001")]


async def test_no_more_objects_are_read_at_once_than_allowed() -> None:
    storage = MemoryStorage()
    for number in range(30):
        _put(storage, FIRST, f"k{number}")
    under_way: Counter[str] = Counter()
    most = 0
    read_start = storage.read_start
    together = asyncio.Barrier(3)

    async def counted(*args: object, **options: object) -> object:
        nonlocal most
        under_way["reads"] += 1
        most = max(most, under_way["reads"])
        try:
            await together.wait()
            return await read_start(*args, **options)  # type: ignore[arg-type]
        finally:
            under_way["reads"] -= 1

    storage.read_start = counted  # type: ignore[method-assign,assignment]
    async with asyncio.timeout(20):
        assert (await _check(storage, _keys(FIRST), concurrency=3)).verified
    assert most == 3


async def test_the_listing_waits_for_the_reads() -> None:
    """A million keys are never in memory: rows are taken from the listing one by one."""
    storage = MemoryStorage()
    for number in range(100):
        _put(storage, FIRST, f"k{number:03}")
    listed = 0
    list_all = storage.list

    async def counted(*args: str, **options: object) -> object:
        nonlocal listed
        async for row in list_all(*args, **options):  # type: ignore[arg-type]
            listed += 1
            yield row

    storage.list = counted  # type: ignore[method-assign,assignment]
    ahead = []
    checked = 0

    def note() -> None:
        nonlocal checked
        checked += 1
        ahead.append(listed - checked)

    await check_project(storage, _keys(FIRST), VerifyReport(), concurrency=4, on_checked=note)
    assert checked == 100
    assert max(ahead) <= 4


@pytest.mark.parametrize(
    ("error", "code"),
    [(MissingError("NoSuchKey"), "not_found"), (RefusedError("Denied"), "storage_unavailable")],
)
async def test_an_object_that_cannot_be_read_is_found(error: Exception, code: str) -> None:
    storage = MemoryStorage()
    _put(storage, FIRST, "a")
    _put(storage, FIRST, "b")
    storage.fail_next("read_start", error)
    report = await _check(storage, _keys(FIRST), concurrency=1)
    assert [(f.s3_key, f.kind, f.state, f.code) for f in report.findings] == [
        ("acme/a", "unreadable", "failed", code)
    ]
    assert report.counts["opened"] == 1


async def test_an_archived_object_is_checked_by_its_wrap_alone() -> None:
    storage = MemoryStorage()
    _put(storage, FIRST, "a", archived=True)
    report = await _check(storage, _keys(FIRST))
    assert [(f.kind, f.code) for f in report.findings] == [("encrypted", "archived_object")]
    assert (await _check(storage, _keys(SECOND))).counts["closed"] == 1


async def test_an_archived_older_version_cannot_be_decided() -> None:
    storage = MemoryStorage(versioned=True)
    _put(storage, FIRST, "a", archived=True)
    _put(storage, FIRST, "a")
    report = await _check(storage, _keys(FIRST))
    assert [(f.version, f.code) for f in report.findings] == [("v000001", "archived_object")]


@pytest.mark.parametrize("operation", ["versioning", "list", "read_start"])
async def test_a_storage_that_is_away_gives_no_report(operation: str) -> None:
    storage = MemoryStorage()
    _put(storage, FIRST, "a")
    storage.fail_next(operation, StorageUnavailableError("away"))
    with pytest.raises(StorageUnavailableError):
        await _check(storage, _keys(FIRST))
    pending = asyncio.all_tasks() - {asyncio.current_task()}
    assert not pending


def test_it_imports_the_formats_and_the_storage_port_alone() -> None:
    """No code of the sweeps that it checks, and no library: the list of import-linter is closed."""
    folder = Path(keyturn_workers.offline.verify.__file__).parent
    core = "keyturn_workers.core"
    allowed = {"keyturn", f"{core}.errors", f"{core}.storage_port", f"{core}.storage_values"}
    library = {"asyncio", "binascii", "collections", "contextlib", "dataclasses", "re", "typing"}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                own = name.startswith(("keyturn.", "keyturn_workers.offline.verify."))
                assert own or name in allowed or name.split(".")[0] in library, (path.name, name)


def _report(
    expectation: Expectation, *checks: ObjectCheck, allow_plaintext: bool = False
) -> VerifyReport:
    report = VerifyReport(expectation, allow_plaintext)
    for number, check in enumerate(checks):
        report.add(f"acme/{number}", None, check)
    return report


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ((OPENED, OPENED, TOMBSTONE, FOREIGN), "the key opens all of 2 wraps"),
        ((OPENED,), "the key opens all of 1 wrap"),
    ],
)
def test_a_key_that_opens_all_is_verified(checks: tuple[ObjectCheck, ...], verdict: str) -> None:
    report = _report("opens", *checks)
    assert (report.verified, report.verdict) == (True, verdict)


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ((), "nothing was verified: the project has no objects"),
        ((TOMBSTONE, FOREIGN), "nothing was verified: no wrap"),
        ((OPENED, CLOSED), "not verified: 1 of 2 objects"),
        ((OPENED, CORRUPT), "not verified: 1 of 2 objects"),
        ((OPENED, PLAINTEXT), "not verified: 1 of 2 objects"),
        ((CLOSED, CLOSED, TOMBSTONE), "the key opens nothing"),
    ],
)
def test_a_key_that_opens_less_is_not(checks: tuple[ObjectCheck, ...], verdict: str) -> None:
    report = _report("opens", *checks)
    assert not report.verified
    assert report.verdict.startswith(verdict)


def test_plaintext_is_accepted_if_asked_for() -> None:
    report = _report("opens", OPENED, PLAINTEXT, allow_plaintext=True)
    assert report.verified
    assert not _report("opens", PLAINTEXT, allow_plaintext=True).verified


def test_a_key_that_opens_none_is_gone() -> None:
    report = _report("gone", CLOSED, CLOSED, PLAINTEXT, TOMBSTONE, FOREIGN)
    assert (report.verified, report.verdict) == (True, "the key opens none of 2 wraps")


@pytest.mark.parametrize("last", [OPENED, CORRUPT, ObjectCheck("unreadable", "failed")])
def test_a_key_that_opens_one_or_may_is_not_gone(last: ObjectCheck) -> None:
    report = _report("gone", CLOSED, last)
    assert not report.verified
    assert report.verdict.startswith("not verified that the key is gone")
    assert [finding.s3_key for finding in report.findings] == ["acme/1"]


@pytest.mark.parametrize(("expectation", "good"), [("opens", OPENED), ("gone", CLOSED)])
def test_what_keyturn_does_not_write_is_a_finding_in_either_case(
    expectation: Expectation, good: ObjectCheck
) -> None:
    report = _report(expectation, good, SUSPICIOUS, allow_plaintext=True)
    assert not report.verified
    assert [finding.s3_key for finding in report.findings] == ["acme/1"]


def test_the_verdict_counts_what_opens_and_what_else_was_found() -> None:
    reports = [_report("gone", CLOSED, OPENED, *[CORRUPT] * others) for others in range(3)]
    assert [report.verdict.partition("gone: ")[2] for report in reports] == [
        "it opens 1 of 2 wraps; 0 other findings",
        "it opens 1 of 2 wraps; 1 other finding",
        "it opens 1 of 2 wraps; 2 other findings",
    ]


@pytest.mark.parametrize("checks", [(), (PLAINTEXT, TOMBSTONE, FOREIGN)])
def test_a_key_that_was_never_tried_is_not_gone(checks: tuple[ObjectCheck, ...]) -> None:
    """A project's name with a typing error would otherwise show every key to be gone."""
    report = _report("gone", *checks)
    assert not report.verified
    assert report.verdict.startswith("nothing was verified")


@pytest.mark.parametrize(("expectation", "bad"), [("opens", CLOSED), ("gone", OPENED)])
def test_noncurrent_versions_count_for_the_verdict(
    expectation: Expectation, bad: ObjectCheck
) -> None:
    good = OPENED if expectation == "opens" else CLOSED
    report = _report(expectation, good)
    report.add("acme/0", "v1", bad)
    assert not report.verified
    assert report.findings == [
        Finding("acme/0", "v1", "encrypted", bad.state, bad.code, bad.detail)
    ]


def test_the_counts_keep_noncurrent_versions_apart() -> None:
    report = _report("opens", OPENED, CLOSED, CORRUPT, PLAINTEXT, TOMBSTONE, FOREIGN)
    for check in (OPENED, CLOSED, CORRUPT, PLAINTEXT):
        report.add("acme/0", "v1", check)
    assert report.counts == {
        "objects": 6,
        "opened": 1,
        "closed": 1,
        "failed": 1,
        "plaintext": 1,
        "tombstones": 1,
        "foreign": 1,
        "noncurrent": 4,
        "noncurrent_opened": 1,
        "noncurrent_closed": 1,
        "noncurrent_failed": 1,
        "noncurrent_plaintext": 1,
    }


def test_all_findings_count_and_few_are_kept() -> None:
    report = VerifyReport(max_findings=2)
    for name in ("c", "a", "b"):
        report.add(f"acme/{name}", None, CLOSED)
    document = report.document()
    assert [finding["s3_key"] for finding in document["findings"]] == ["acme/a", "acme/c"]
    assert document["findings_omitted"] == 1
    assert document["counts"]["closed"] == 3
    assert document["verified"] is False


@pytest.mark.parametrize("place", PLACES)
async def test_a_wrap_hidden_in_what_a_rewrap_keeps_is_found_by_the_old_key(place: str) -> None:
    storage = MemoryStorage()
    _put(storage, FIRST, "a")
    old = (await storage.head("acme/a")).metadata["enc-dek-user"]
    _put(storage, SECOND, "a")
    head, body = await storage.read("acme/a")
    metadata, restated, content_type, tags = hide(place, old)
    headers = Headers({**head.metadata, **metadata}, content_type, restated)
    storage.plant("acme/a", body, headers, tags=tags)
    report = VerifyReport("gone")
    await check_project(storage, _keys(FIRST), report)
    assert (report.verified, report.opened) == (False, 1)
    assert (await _check(storage, _keys(SECOND))).verified


async def test_tags_that_cannot_be_read_leave_it_open_whether_a_key_is_gone() -> None:
    storage = MemoryStorage()
    _put(storage, SECOND, "a")
    head, body = await storage.read("acme/a")
    storage.plant("acme/a", body, head.headers, tags={"team": "legal"})
    storage.fail_next("read_tags", RefusedError("no permission"))
    report = VerifyReport("gone")
    await check_project(storage, _keys(FIRST), report)
    assert [finding.code for finding in report.findings] == ["storage_unavailable"]
