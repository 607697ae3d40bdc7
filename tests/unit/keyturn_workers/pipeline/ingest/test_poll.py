"""Listings: every object of a source is asked for, and none more often than it must be."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.errors import NotDeliveredError, StorageUnavailableError
from keyturn.identifiers import source_s3_key
from keyturn_workers.core.errors import PreconditionError, RefusedError
from keyturn_workers.core.storage_values import Headers, ObjectSummary
from keyturn_workers.pipeline.ingest import poll as poll_module
from keyturn_workers.pipeline.ingest import record as record_module
from keyturn_workers.pipeline.ingest import source_ingest as source_ingest_module
from keyturn_workers.pipeline.ingest.poll import digest_of, runs
from keyturn_workers.pipeline.ingest.record import Refusal, SourceRecord
from keyturn_workers.pipeline.ingest.source_ingest import Outcome
from tests.unit.keyturn_workers.pipeline.ingest.scene import Scene, source_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

pytestmark = pytest.mark.asyncio
_AT = datetime(2026, 11, 30, tzinfo=UTC)


async def _runs(keys: Sequence[str]) -> list[list[str]]:
    async def rows() -> AsyncIterator[ObjectSummary]:
        for key in keys:
            yield ObjectSummary(key, 1, "etag", _AT)

    return [[row.key for row in run] async for run in runs(rows())]


@given(st.sets(st.text(max_size=3)), st.text(max_size=3))
async def test_a_new_key_changes_one_run(keys: set[str], new: str) -> None:
    before = await _runs(sorted(keys))
    after = await _runs(sorted(keys | {new}))
    assert [key for run in after for key in run] == sorted(keys | {new})
    assert len([run for run in before if run not in after]) <= 1


async def test_runs_are_bounded_and_have_about_64_objects() -> None:
    sizes = [len(run) for run in await _runs([f"{n:06}" for n in range(20_000)])]
    assert max(sizes) <= 512
    assert 40 < sum(sizes) / len(sizes) < 100


async def test_a_digest_is_of_keys_and_contents() -> None:
    drop = source_of()
    rows = [
        ObjectSummary(key, 1, etag, _AT) for key, etag in [("a", "bc"), ("ab", "c"), ("a", "d")]
    ]
    digests = {digest_of([row], drop) for row in rows}
    digests |= {digest_of(rows, drop), digest_of(rows, source_of(project="other"))}
    digests |= {digest_of(rows, drop, _AT), digest_of(rows, drop, _AT + timedelta(days=1))}
    assert len(digests) == 7
    assert digest_of([ObjectSummary("\ud800", 1, "", _AT)], drop)


async def test_what_is_stored_is_not_asked_for_again() -> None:
    scene = Scene()
    scene.put("a", "b/c", "b/")
    scene.bucket.plant("in/folder/", b"", Headers(metadata={}))
    scene.bucket.plant("elsewhere", b"x", Headers(metadata={}))
    _, first = scene.process()
    assert await scene.poll(first) == ["a", "b/c"]
    scene.advance(301)
    assert await scene.poll(scene.process()[1]) == []  # another process, which knows the record
    record = await scene.record()
    assert (record.objects, record.waiting) == (4, 0)
    assert record.finished_at == scene.now


async def test_only_a_run_with_a_new_object_is_asked_for_again() -> None:
    scene = Scene()
    scene.put(*(f"{n:05}" for n in range(2000)))
    await scene.poll(scene.process()[1])
    assert len(scene.outcomes.requested) == 2000
    scene.put("00500x")
    scene.advance(301)
    asked = await scene.poll(scene.process()[1])
    assert "00500x" in asked
    assert len(asked) <= 513


async def test_a_refused_object_does_not_make_its_neighbors_be_asked_for_again() -> None:
    scene = Scene()
    scene.put("a", "b", "bad")
    scene.outcomes.codes["bad"] = "unknown_project"
    assert await scene.poll(scene.process()[1]) == ["a", "b", "bad"]
    for _ in range(2):
        scene.advance(301)
        assert await scene.poll(scene.process()[1]) == ["bad"]  # once by each process
    scene.outcomes.codes.clear()
    scene.advance(301)
    assert await scene.poll(scene.process()[1]) == ["bad"]
    scene.advance(301)
    assert await scene.poll(scene.process()[1]) == []
    record = await scene.record()
    assert not record.refused
    assert len(record.digests) == 1


async def test_another_mapping_is_another_source() -> None:
    scene = Scene()
    scene.put("a")
    await scene.poll(scene.process()[1])
    scene.source = source_of(project="other")
    scene.advance(301)
    assert await scene.poll(scene.process()[1]) == ["a"]


async def test_a_source_that_is_deleted_from_is_asked_for_all_that_is_left() -> None:
    scene = Scene(delete=True)
    scene.put("a", "b")
    _, poller = scene.process()
    assert await scene.poll(poller) == ["a", "b"]
    # Stored, but still there: the deletion failed.
    scene.advance(301)
    assert await scene.poll(scene.process()[1]) == ["a", "b"]
    assert (await scene.record()).objects == 2


async def test_what_is_still_there_is_asked_for_again_by_the_same_process_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its deletion failed; or it was gone, and is there again with the same id."""
    scene = Scene(delete=True)
    scene.put("stored", "gone", "bad")
    scene.outcomes.codes |= {"gone": "source_missing", "bad": "unknown_project"}
    elapsed_s = 0.0
    monkeypatch.setattr(source_ingest_module, "time", SimpleNamespace(monotonic=lambda: elapsed_s))
    _, poller = scene.process()
    asked_at: dict[str, list[int]] = {"stored": [], "gone": [], "bad": []}
    for minute in range(128):
        elapsed_s = minute * 60.0
        scene.advance(300)
        for key in await scene.poll(poller):
            asked_at[key].append(minute)
    often = [0, 1, 3, 7, 15, 31, 63, 123]
    assert asked_at == {"stored": often, "gone": often, "bad": [0]}


async def test_a_source_that_cannot_be_deleted_from_is_not_asked_for_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as Ceph's without versions, whatever its setting says."""
    scene = Scene(delete=True)
    scene.put("a", "b", "c")
    monkeypatch.setattr(poll_module, "MAX_REMEMBERED", 2)
    assert await scene.poll(scene.process()[1]) == ["a", "b", "c"]
    scene.advance(301)
    assert await scene.poll(scene.process()[1]) == []
    assert await scene.poll(scene.process()[1], take_over=True) == ["a", "b", "c"]


async def test_what_another_process_found_to_be_gone_is_forgotten() -> None:
    scene = Scene(delete=True)
    scene.put("bad")
    scene.outcomes.codes["bad"] = "unknown_project"
    ingest, _ = scene.process()
    await (await ingest.begin("in/bad", is_hint=True))
    assert list(ingest.refused) == ["in/bad"]
    await scene.bucket.delete("in/bad")
    scene.advance(1)
    await scene.poll(scene.process()[1])
    ingest.remember(await scene.record())
    assert not ingest.refused


async def test_an_object_that_was_written_over_is_asked_for_again() -> None:
    scene = Scene()
    scene.put("a")
    _, poller = scene.process()
    await scene.poll(poller)
    scene.put("a", body=b"other")
    scene.advance(301)
    assert await scene.poll(poller) == ["a"]
    first, second = scene.outcomes.requested
    assert first.upload_id("test") != second.upload_id("test")


async def test_refused_objects_are_remembered_by_every_process() -> None:
    scene = Scene(delete=True)
    scene.put("good", "bad", "../x", "x" * 901, "tab\t", ".keyturn/x")
    scene.outcomes.codes["bad"] = "unknown_project"
    _, first = scene.process()
    scene.now -= timedelta(hours=1)
    _, second = scene.process()
    scene.now += timedelta(hours=1)
    assert await scene.poll(first) == ["bad", "good"]
    refused = (await scene.record()).refused
    assert {key.removeprefix("in/"): refusal.code for key, refusal in refused.items()} == {
        "bad": "unknown_project",
        **dict.fromkeys(["../x", "x" * 901, "tab\t", ".keyturn/x"], "malformed_request"),
    }
    first_refused_at = refused["in/../x"].at
    scene.advance(301)
    assert await scene.poll(second) == ["good"]
    assert (await scene.record()).refused["in/../x"].at == first_refused_at
    # Another body, a restart, or a day: it may be accepted now.
    scene.put("bad", body=b"other")
    scene.advance(301)
    assert "bad" in await scene.poll(second)
    scene.advance(301)
    assert "bad" in await scene.poll(scene.process()[1])
    scene.advance(25 * 3600)
    third, _ = scene.process()
    third._started_at -= timedelta(days=9)
    third._retried_at -= timedelta(days=9)
    task = await third.begin("in/bad", is_hint=False)
    await task
    assert scene.outcomes.keys[-1] == "in/bad"


async def test_a_refused_object_leaves_one_letter_however_often_it_is_requested() -> None:
    scene = Scene()
    scene.put("bad")
    scene.outcomes.codes["bad"] = "unknown_project"
    for _ in range(3):
        await scene.poll(scene.process()[1])
        scene.advance(25 * 3600)
    assert scene.outcomes.keys == ["in/bad"] * 3
    assert [each.key for each in scene.outcomes.letters] == ["in/bad"]
    scene.put("bad", body=b"other")  # another object at its key
    await scene.poll(scene.process()[1])
    assert [each.key for each in scene.outcomes.letters] == ["in/bad"] * 2


@pytest.fixture
def few_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two refusals are remembered."""
    for module in (record_module, source_ingest_module):
        monkeypatch.setattr(module, "MAX_REFUSED", 2)


@pytest.mark.usefixtures("few_refusals")
@pytest.mark.parametrize("delete", [False, True])
async def test_refused_objects_beyond_those_remembered_are_not_asked_for_at_every_poll(
    *, delete: bool
) -> None:
    scene = Scene(delete=delete)
    bad = [f"bad{n}" for n in range(5)]
    good = [] if delete else ["good0", "good1"]
    scene.put(*bad, *good, "bad\t")
    scene.outcomes.codes |= dict.fromkeys(bad, "body_too_large")
    assert await scene.poll(scene.process()[1]) == [*bad, *good]
    for _ in range(2):
        scene.advance(301)
        assert await scene.poll(scene.process()[1]) == []
    # A restart, even if the listing is interrupted; or a day; or another object among them.
    scene.outcomes.failure = NotDeliveredError("down")
    with pytest.raises(ExceptionGroup):
        await scene.poll(scene.process()[1], take_over=True)
    scene.outcomes.failure = None
    scene.advance(301)
    assert await scene.poll(scene.process()[1]) == [*bad, *good]
    scene.advance(24 * 3600)
    assert await scene.poll(scene.process()[1]) == [*bad, *good]
    scene.put("bad0", body=b"other")
    scene.advance(301)
    assert "bad0" in await scene.poll(scene.process()[1])
    scene.advance(301)
    assert await scene.poll(scene.process()[1]) == []
    # What is accepted now is stored, and no longer refused.
    scene.outcomes.codes.clear()
    await scene.poll(scene.process()[1], take_over=True)
    assert set((await scene.record()).refused) <= {"in/bad\t"}


@pytest.mark.usefixtures("few_refusals")
async def test_an_object_without_an_outcome_is_asked_for_again_among_refused_ones() -> None:
    scene = Scene()
    scene.put("bad0", "bad1", "bad2", "slow", "moved")
    scene.outcomes.codes |= dict.fromkeys(["bad0", "bad1", "bad2"], "body_too_large")
    for code in (None, "source_changed"):
        scene.outcomes.codes["slow"] = code
        scene.advance(301)
        assert "slow" in await scene.poll(scene.process()[1])
    del scene.outcomes.codes["slow"]
    scene.advance(301)
    assert "slow" in await scene.poll(scene.process()[1])
    scene.advance(301)
    assert await scene.poll(scene.process()[1]) == []


@pytest.mark.usefixtures("few_refusals")
async def test_a_process_remembers_only_the_latest_refusals() -> None:
    """Anyone who writes to a source can make any number of bad names."""
    scene = Scene()
    scene.put(*(f"bad{n}\t" for n in range(50)))
    ingest, poller = scene.process()
    for n in (3, 1, 2, 0):
        scene.advance(1)
        await (await ingest.begin(f"in/bad{n}\t", is_hint=False))
        assert len(ingest.refused) <= 2
    assert list(ingest.refused) == ["in/bad2\t", "in/bad0\t"]
    scene.advance(1)
    await scene.poll(poller)
    assert len(ingest.refused) == 2
    record = await scene.record()
    assert len(record.refused) == 2
    scene.advance(1)
    await (await ingest.begin("in/bad7\t", is_hint=False))
    ingest.remember(SourceRecord(refused=record.refused))
    assert len(ingest.refused) == 2
    assert "in/bad7\t" in ingest.refused


async def test_what_is_gone_is_no_longer_refused() -> None:
    scene = Scene(delete=True)
    scene.put("bad", "late")
    scene.outcomes.codes |= {"bad": "body_too_large", "late": "source_changed"}
    _, poller = scene.process()
    await scene.poll(poller)
    assert list((await scene.record()).refused) == ["in/bad"]
    await scene.bucket.delete("in/bad")
    scene.advance(301)
    await scene.poll(poller)
    assert not (await scene.record()).refused


async def test_what_has_no_outcome_is_waiting_and_not_requested_twice() -> None:
    scene = Scene()
    scene.put("a", "slow")
    scene.outcomes.codes["slow"] = None
    _, poller = scene.process()
    await scene.poll(poller)
    assert (await scene.record()).waiting == 1
    scene.advance(301)
    assert await scene.poll(poller) == []
    assert (await scene.record()).waiting == 1
    scene.advance(301)
    scene.outcomes.codes.clear()
    assert "slow" in await scene.poll(scene.process()[1])
    assert (await scene.record()).waiting == 0


async def test_a_late_outcome_is_learned_and_holds_no_other_object_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene()
    scene.put("slow", "bad")
    scene.outcomes.codes["bad"] = "body_too_large"
    scene.outcomes.hold.clear()
    monkeypatch.setattr(source_ingest_module, "_SLOT_S", 0.01)
    _, poller = scene.process()
    await scene.poll(poller)
    assert (await scene.record()).waiting == 2
    scene.advance(301)
    assert await scene.poll(poller) == []  # not requested twice meanwhile
    scene.outcomes.hold.set()
    await asyncio.gather(*poller._ingest._pending.values())
    scene.advance(301)
    assert await scene.poll(poller) == []
    record = await scene.record()
    assert record.waiting == 0
    assert [refusal.code for refusal in record.refused.values()] == ["body_too_large"]


async def test_requests_without_an_outcome_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as while no upload worker runs: the queue is every publisher's."""
    scene = Scene()
    scene.put(*(str(number) for number in range(9)))
    scene.outcomes.hold.clear()
    monkeypatch.setattr(source_ingest_module, "_SLOT_S", 0.01)
    monkeypatch.setattr(source_ingest_module, "MAX_REMEMBERED", 4)
    _, poller = scene.process()
    assert len(await scene.poll(poller)) == 4
    assert (await scene.record()).waiting == 9
    scene.outcomes.hold.set()
    await asyncio.gather(*poller._ingest._pending.values())
    monkeypatch.undo()
    scene.advance(301)
    assert len(await scene.poll(poller)) == 5
    assert (await scene.record()).waiting == 0


async def test_one_worker_at_a_time_lists_a_source() -> None:
    scene = Scene()
    scene.put("a")
    scene.outcomes.hold.clear()
    _, first = scene.process()
    _, second = scene.process()
    listing = asyncio.create_task(first.poll(take_over=False))
    await scene.outcomes.reached(1)
    assert await scene.poll(second) == []
    scene.outcomes.hold.set()
    await listing
    scene.advance(299)
    assert await scene.poll(second) == []
    scene.put("b")
    scene.advance(2)
    assert "b" in await scene.poll(second)


async def test_a_worker_that_starts_takes_over() -> None:
    scene = Scene()
    scene.put("a")
    scene.outcomes.hold.clear()
    _, first = scene.process()
    listing = asyncio.create_task(first.poll(take_over=True))
    await scene.outcomes.reached(1)
    taking_over = asyncio.create_task(scene.process()[1].poll(take_over=True))
    await scene.outcomes.reached(2)
    scene.outcomes.hold.set()
    await taking_over
    with pytest.raises(ExceptionGroup) as caught:
        await listing
    assert caught.group_contains(PreconditionError)
    assert (await scene.record()).finished_at is not None


@pytest.mark.parametrize("part", ["listing", "broker"])
async def test_an_outage_ends_a_listing_and_loses_nothing(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyturn_workers.pipeline.sources.bucket._PAUSES_S", (0.0, 0.0))
    scene = Scene()
    scene.put("a", "b")
    _, poller = scene.process()
    if part == "broker":
        scene.outcomes.failure = NotDeliveredError("down")
    else:
        scene.bucket.fail_next("list_entries", StorageUnavailableError("down"))
    await poller._poll_logged()
    record = await scene.record()
    assert record.finished_at is None
    assert not record.digests
    scene.outcomes.failure = None
    scene.advance(301)
    assert await scene.poll(poller) == ["a", "b"]
    assert (await scene.record()).objects == 2


async def test_one_object_that_cannot_be_read_keeps_no_other_from_being_taken_in() -> None:
    scene = Scene()
    scene.put("a", "b")
    _, poller = scene.process()
    scene.bucket.fail_next("head", RefusedError("403"))
    assert len(await scene.poll(poller)) == 1
    assert (await scene.record()).waiting == 1
    scene.advance(301)
    assert len(await scene.poll(poller)) == 1
    assert (await scene.record()).waiting == 0


async def test_a_lost_or_forged_record_costs_requests_alone() -> None:
    scene = Scene()
    scene.put("a")
    await scene.poll(scene.process()[1])
    for body in (b"{}", b"\xff", b'{"v":1,"project":"*","master_key":"main","sealed":"AAAA"}'):
        scene.own.plant(source_s3_key("drop"), body, Headers(metadata={}))
        assert await scene.poll(scene.process()[1]) == ["a"]
    await scene.own.delete(source_s3_key("drop"))
    assert await scene.poll(scene.process()[1]) == ["a"]
    assert (await scene.record()).objects == 1


@pytest.mark.parametrize(("later_s", "kept"), [(-1, False), (1, True)])
async def test_the_outcome_of_a_replaced_object_forgets_no_later_refusal(
    *, later_s: float, kept: bool
) -> None:
    """An object was overwritten once it was stored; the event of the first one comes last."""
    scene = Scene()
    scene.put("a")
    ingest, _ = scene.process()
    scene.outcomes.hold.clear()
    first = await ingest.begin("in/a", is_hint=True)
    await scene.outcomes.reached(1)
    scene.advance(later_s)
    second = str(uuid.uuid4())
    ingest.refused["in/a"] = Refusal(second, "already_exists", scene.now)
    scene.outcomes.hold.set()
    assert await first is Outcome.STORED
    assert ("in/a" in ingest.refused) is kept
