"""A report comes in its turn, is a page or a reason, and holds no secret (SPEC 13, 16.1)."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, get_args

import pytest

from keyturn.crypto import admin_kek, record_kek
from keyturn.errors import KmsUnavailableError, StorageUnavailableError, UnknownMasterKeyError
from keyturn.evidence import sign
from keyturn.identifiers import evidence_s3_key
from keyturn.messages import StatusReported, StatusView, encode
from keyturn_workers.core.errors import RefusedError
from keyturn_workers.core.sweep_record import Failure
from keyturn_workers.keys.master_keys.local import LocalMasterKey
from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
from keyturn_workers.reports.status import reader as reader_module
from keyturn_workers.reports.status.reader import READ_AT_ONCE, read_master_keys
from keyturn_workers.reports.status.records import Pace
from tests.unit.keyturn.evidence.shared import statement
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring, rotated
from tests.unit.keyturn_workers.reports.status.bucket import (
    DEPLOYMENT,
    EVENT_KEY,
    REQUEST_ID,
    Bucket,
    done,
    record,
    request,
    round_id,
    sweep_id,
)
from tools.harness.canaries import encodings
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn.crypto import Secret

_RING = rotated(rotated(keyring()))


@pytest.fixture
async def bucket() -> Bucket:
    made = Bucket()
    await made.enroll(keyring("acme"), keyring("other"))
    return made


async def test_a_report_repeats_what_was_requested(bucket: Bucket) -> None:
    report = await bucket.report("sweep", "acme", sweep_id=sweep_id(1), limit=7)
    assert (report.request_id, report.view, report.project) == (REQUEST_ID, "sweep", "acme")
    assert (report.sweep_id, report.sweeps, report.next) == (sweep_id(1), (), None)


async def test_a_report_counts_what_matches_and_what_there_is(bucket: Bucket) -> None:
    for page, names in ((1, ["acme"]), (2, ["other"]), (3, [])):
        report = await bucket.report("projects", limit=1, page=page)
        assert [row.project for row in report.projects or ()] == names
        assert (report.page, report.total, report.of_all) == (page, 2, 2)
        assert report.is_complete
    wanted = {"text": "othe"}
    report = await bucket.report("projects", filter=wanted)
    assert (report.total, report.of_all) == (1, 2)
    bucket.replace(rotated(keyring("acme")))
    changed = await bucket.report("projects", "acme")
    assert [row.generation for row in changed.projects or ()] == [2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "detail"),
    [
        (StorageUnavailableError("no answer"), "no answer"),
        (RefusedError("AccessDenied"), "the storage refused the request: RefusedError"),
        (ZeroDivisionError("a bug"), "internal failure: ZeroDivisionError"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_cannot_be_read_is_a_report_with_its_code(
    bucket: Bucket, failure: Exception, detail: str
) -> None:
    bucket.storage.fail_next("list_entries", failure)
    report = await bucket.report("projects")
    assert (report.code, report.detail) == ("storage_unavailable", detail)
    assert (report.projects, report.total) == (None, None)
    assert (await bucket.report("projects")).code is None


async def test_the_time_of_a_report_is_before_what_it_read(bucket: Bucket) -> None:
    """A change that comes while it is read is newer than the report."""
    times = iter(datetime(2026, 11, 24, 10, tzinfo=UTC) + timedelta(hours=n) for n in range(9))
    asked: list[datetime] = []

    def now() -> datetime:
        asked.append(next(times))
        return asked[-1]

    reader = bucket.new_reader(now=now)
    read: list[int] = []

    async def note() -> None:
        read.append(len(asked))

    bucket.storage.before_next("list_entries", note)
    report = await reader.report(request("objects"))
    assert read == [1]
    assert report.at == "2026-11-24T10:00:00.000000Z"


async def test_a_process_reads_few_reports_at_once_and_refuses_what_is_too_many(
    bucket: Bucket,
) -> None:
    go_on, begun = asyncio.Event(), asyncio.Semaphore(0)

    async def wait() -> None:
        begun.release()
        await go_on.wait()

    for _ in range(9):
        bucket.storage.before_next("list_entries", wait)
    reader = bucket.new_reader(max_waiting=3)

    async def report() -> StatusReported:
        return await reader.report(request("objects"))

    tasks = [asyncio.create_task(report()) for _ in range(READ_AT_ONCE + 3)]
    for _ in range(READ_AT_ONCE):
        await begun.acquire()
    await asyncio.sleep(0)
    assert begun.locked()  # none beyond these
    assert (await report()).code == "too_many_requests"
    go_on.set()
    assert [each.code for each in await asyncio.gather(*tasks)] == [None] * 5
    assert (await report()).code is None


async def test_a_report_that_is_canceled_gives_its_place_back(bucket: Bucket) -> None:
    reader, begun = bucket.new_reader(max_waiting=0), asyncio.Semaphore(0)

    async def wait() -> None:
        begun.release()
        await asyncio.Event().wait()

    for _ in range(READ_AT_ONCE):
        bucket.storage.before_next("list_entries", wait)
    tasks = [asyncio.create_task(reader.report(request("objects"))) for _ in range(READ_AT_ONCE)]
    for _ in range(READ_AT_ONCE):
        await begun.acquire()
    assert (await reader.report(request("objects"))).code == "too_many_requests"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (await reader.report(request("objects"))).code is None


def test_every_view_has_its_field() -> None:
    assert reader_module.ROWS_OF.keys() == {*get_args(StatusView)}
    assert {*reader_module.ROWS_OF.values()} < {*StatusReported.model_fields}


async def test_a_batch_begins_at_once_if_there_is_nothing_else() -> None:
    async with asyncio.timeout(0.2):
        await Pace(lambda: 0, max_wait_s=9).next_batch()


async def test_a_batch_waits_for_others_until_they_are_done_or_it_has_waited_long() -> None:
    others = 1
    waiting = asyncio.create_task(Pace(lambda: others, max_wait_s=9).next_batch())
    await asyncio.sleep(0.02)
    assert not waiting.done()
    others = 0
    async with asyncio.timeout(1):
        await waiting
    began = time.monotonic()
    await Pace(lambda: 1, max_wait_s=0.05).next_batch()
    assert 0.05 <= time.monotonic() - began < 1


async def test_reports_do_not_wait_for_each_other() -> None:
    """Two in hand, and nothing else: each counts itself and the other one."""
    bucket = Bucket()
    await bucket.enroll(keyring())
    reader = bucket.new_reader(in_hand=lambda: 2)
    async with asyncio.timeout(0.2):
        await asyncio.gather(*(reader.report(request("projects")) for _ in range(2)))


async def test_a_report_waits_for_another_request() -> None:
    bucket, in_hand = Bucket(), 2
    await bucket.enroll(keyring())
    reader = bucket.new_reader(in_hand=lambda: in_hand)
    reading = asyncio.create_task(reader.report(request("projects")))
    await asyncio.sleep(0.02)
    assert bucket.storage.calls["read"] == 0
    in_hand = 1
    async with asyncio.timeout(1):
        assert (await reading).code is None
    assert bucket.storage.calls["read"] == 1


async def test_the_master_keys_of_the_process_are_rows_in_its_order() -> None:
    bucket = Bucket(known=("m2", "m1"))
    report = await bucket.report("master_keys")
    rows = [(row.master_key, row.provider, row.active) for row in report.master_keys or ()]
    assert rows == [("m2", "local", False), ("m1", "local", True)]
    assert report.next is None


async def test_one_that_cannot_be_used_now_has_a_code() -> None:
    failures: dict[str, Exception] = {
        "another": UnknownMasterKeyError("another"),
        "away": KmsUnavailableError("no answer"),
        "odd": RuntimeError("a bug"),
        "unread": StorageUnavailableError("no answer"),
    }

    async def check(name: str, kek: Secret) -> bool:
        del kek
        if name in failures:
            raise failures[name]
        return True

    held = {name: LocalMasterKey(MASTER_KEYS["m1"]) for name in (*failures, "fine")}
    rows = await read_master_keys(OperatorKeys(held, check=check), None)
    assert {row.master_key: row.code for row in rows} == {
        "another": "unknown_master_key",
        "away": "kms_unavailable",
        "odd": "storage_unavailable",
        "unread": "storage_unavailable",
        "fine": None,
    }
    assert not any(row.active for row in rows)


async def _full_bucket() -> Bucket:
    bucket = Bucket(MemoryStorage(versioned=True))
    await bucket.enroll(_RING)
    await bucket.add(record(done(1, clean=False)))
    failures = (Failure("k", "no_usable_wrap"),)
    await bucket.store.add_failures("acme", round_id(1), 0, failures, "m1")
    bucket.put(_RING, "a")
    bucket.put(_RING, "a")
    bucket.put(_RING, "forged", generation=9)
    fields: dict[str, Any] = {"sweep_id": sweep_id(1), "generation": 3}
    envelope = sign(statement(deployment=DEPLOYMENT, **fields), EVENT_KEY)
    bucket.plant(evidence_s3_key("acme", 3, sweep_id(1)), {}, envelope)
    return bucket


async def _secrets(bucket: Bucket) -> dict[str, bytes]:
    entries = (*_RING.history, _RING.current)
    found = {f"KEK {each.generation}": each.kek.reveal() for each in entries if each.kek}
    found |= {name: key.reveal() for name, key in MASTER_KEYS.items()}
    for name, key in MASTER_KEYS.items():
        found[f"admin KEK {name}"] = admin_kek(key.reveal(), "acme").reveal()
        found[f"record KEK {name}"] = record_kek(key.reveal(), "acme").reveal()
    for s3_key in ("acme/a", "acme/forged"):
        metadata = (await bucket.storage.head(s3_key)).metadata
        for name in ("enc-dek-user", "enc-dek-admin"):
            found[f"{name} {s3_key}"] = metadata[name].encode()
    _, record = await bucket.storage.read(".keyturn/keyrings/acme.json")
    found["sealed keyring"] = record.partition(b'"sealed": "')[2]
    return found


_OF_THE_BUCKET = get_args(StatusView)[:7]


@pytest.mark.parametrize("view", _OF_THE_BUCKET)
async def test_no_report_holds_a_secret(view: StatusView) -> None:
    bucket = await _full_bucket()
    secrets = await _secrets(bucket)
    assert len(secrets) == 3 + 2 + 4 + 4 + 1
    needs_sweep = {"sweep_id": sweep_id(1)} if view in ("sweep", "failures") else {}
    project = "*" if view in ("master_keys", "projects") else "acme"
    reported = await bucket.report(view, project, **needs_sweep)
    assert reported.code is None
    report = encode(reported).decode()
    shown = {name for name, value in secrets.items() for text in encodings(value) if text in report}
    assert shown == set()
