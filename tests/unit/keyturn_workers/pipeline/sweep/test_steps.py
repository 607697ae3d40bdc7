"""What a step message does to a record, and what becomes of lost ones (SPEC 8.5)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from typing import Any, Self, cast

import pytest
from structlog.testing import capture_logs

from keyturn.counts import Counts
from keyturn.errors import NotFoundError, StorageUnavailableError
from keyturn_workers.core.errors import PreconditionError
from keyturn_workers.core.sweep_record import ALL, AllRecord, Origin, PartEnd, ProjectRecord
from keyturn_workers.pipeline.sweep.messages import SweepStep
from tests.unit.keyturn_workers.pipeline.sweep.records import (
    NOW,
    OTHER_ID,
    ROUND_ID,
    SWEEP,
    SWEEP_ID,
    ended,
    origin,
    record,
)
from tests.unit.keyturn_workers.pipeline.sweep.sweeping import KEEP_FOR, Sweeping

ERROR = StorageUnavailableError("it was away for a week")
OTHER = origin(origin_id=OTHER_ID)
PART = origin("part", walk_id=ROUND_ID)
PROJECTS = pytest.mark.parametrize("project", ["acme", ALL])


def _step(number: int, project: str = "acme") -> SweepStep:
    return SweepStep(project=project, step=number)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers' clock shows the moment at which these origins were added."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.fromtimestamp(NOW.timestamp(), tz)

    monkeypatch.setattr("keyturn_workers.pipeline.sweep.steps.datetime", Clock)


async def _put(on: Sweeping, project: str, *origins: Origin) -> None:
    """A record with these origins that waits for step 3."""
    made = record(*origins) if project == "acme" else AllRecord(step=3, origins=origins)
    assert await on.store.create(made, "m1")


async def _found(on: Sweeping, project: str = "acme") -> ProjectRecord | AllRecord:
    found = await on.store.find(project)
    assert found is not None
    return found


# Messages come twice, late, or not at all.


async def test_a_message_of_another_step_changes_nothing() -> None:
    on = Sweeping()
    await on.start()
    await on.deliver()
    before = await on.stored()
    for number in (0, before.record.step + 1, before.record.step + 5):
        await on.handler.run_step(_step(number), again=False)
    assert await on.stored() == before


async def test_a_repeated_step_sends_again_what_its_worker_may_not_have_sent() -> None:
    on = Sweeping()
    await on.start()
    await on.deliver()
    after = await on.record()
    on.messages.waiting.clear()
    await on.handler.run_step(_step(after.step - 1), again=True)
    assert on.messages.steps() == [after.step]
    assert after.round is not None
    assert [page.page for page in on.messages.pages()] == [0, 1]


async def test_a_page_with_a_result_is_not_sent_again() -> None:
    on = Sweeping()
    await on.start()
    await on.deliver()
    step = (await on.record()).step
    await on.handler.process_page(on.messages.pages()[0])
    on.messages.waiting.clear()
    await on.handler.run_step(_step(step - 1), again=True)
    assert [page.page for page in on.messages.pages()] == [1]


async def test_a_repeated_step_publishes_the_end_that_its_worker_may_not_have_published() -> None:
    on = Sweeping()
    await _put(on, "acme", ended(SWEEP, published=False))
    await on.handler.run_step(_step(2), again=True)
    assert on.messages.types() == ["sweep.completed"]
    assert on.messages.steps() == []


async def test_a_step_that_another_worker_makes_first_is_not_made_twice() -> None:
    on = Sweeping()
    await on.start()
    _, hint = on.messages.take()
    assert isinstance(hint, SweepStep)

    async def other() -> None:
        await on.handler.run_step(hint, again=False)

    on.storage.before_next("put", other)
    await on.handler.run_step(hint, again=False)
    assert (await on.record()).step == 1
    assert on.messages.steps() == [1]
    assert len(on.messages.pages()) == 2


@PROJECTS
async def test_a_record_that_keeps_changing_is_tried_again_later(project: str) -> None:
    on = Sweeping()
    await on.start(SWEEP, project)
    on.storage.fail_next("put", PreconditionError("412"), times=40)
    with pytest.raises(StorageUnavailableError, match="kept changing"):
        await on.handler.run_step(_step(0, project), again=False)


@PROJECTS
async def test_there_is_no_step_without_a_record(project: str) -> None:
    on = Sweeping()
    with pytest.raises(NotFoundError):
        await on.handler.run_step(_step(0, project), again=False)
    assert not await on.handler.resume(project)
    await on.handler.record_failure(_step(0, project), ERROR)


@PROJECTS
async def test_a_record_that_rests_has_no_step(project: str) -> None:
    on = Sweeping()
    await _put(on, project, ended(SWEEP))
    before = await _found(on, project)
    await on.handler.run_step(_step(3, project), again=False)
    assert not await on.handler.resume(project)
    assert await _found(on, project) == before
    assert on.messages.waiting == []


@PROJECTS
async def test_a_record_that_lost_its_messages_resumes(project: str) -> None:
    on = Sweeping()
    await on.start(SWEEP, project)
    await on.deliver()
    on.messages.waiting.clear()
    before = await _found(on, project)
    assert await on.handler.resume(project)
    assert on.messages.steps() == [before.step + 1]
    assert (await _found(on, project)).step == before.step + 1


@PROJECTS
async def test_a_record_whose_steps_have_failed_for_days_is_not_resumed_for_ever(
    project: str,
) -> None:
    """Otherwise each scan would restart the attempts, and no failure would be published."""
    on = Sweeping()
    await _put(on, project, replace(SWEEP, added_at=NOW - timedelta(days=99)))
    assert await on.handler.resume(project)
    found = await _found(on, project)
    assert [each.status for each in found.origins] == ["failed"]
    assert on.messages.steps() == []


async def test_of_two_workers_that_resume_a_record_one_does() -> None:
    on = Sweeping()
    await on.start()
    on.messages.waiting.clear()

    async def other() -> None:
        assert await on.handler.resume("acme")

    on.storage.before_next("put", other)
    assert await on.handler.resume("acme")
    assert on.messages.steps() == [1]


async def test_the_pages_of_a_record_that_is_resumed_are_sent_again() -> None:
    on = Sweeping()
    await on.start()
    await on.deliver()
    on.messages.waiting.clear()
    await on.handler.resume("acme")
    await on.deliver()
    assert [page.page for page in on.messages.pages()] == [0, 1]


# Ends.


@PROJECTS
async def test_an_end_that_was_not_published_is_published_first(project: str) -> None:
    on = Sweeping()
    await _put(on, project, ended(SWEEP, published=False))
    assert not await on.handler.resume(project)
    assert on.messages.types() == ["sweep.completed"]
    assert (await _found(on, project)).origins == (ended(SWEEP),)


async def test_the_end_is_published_to_a_request_that_comes_while_it_is_published() -> None:
    on = Sweeping()
    await _put(on, "acme", ended(SWEEP, published=False))

    async def repeated() -> None:
        await on.start(replace(SWEEP, digests=("1" * 64,)))

    on.storage.before_next("put", repeated)
    await on.handler.resume("acme")
    requests = [cast("Any", event).request for event in on.messages.published]
    assert requests == ["0" * 64, "0" * 64, "1" * 64]


async def test_a_part_ends_by_a_record_for_its_walk_and_leaves_its_own() -> None:
    """The sweep of all publishes the end."""
    on = Sweeping()
    failed = ended(PART, clean=False, code="corrupt_object", published=False)
    await _put(on, "acme", failed, SWEEP)
    await on.handler.run_step(_step(3), again=False)
    end = PartEnd(Counts(failed=1), clean=False, code="corrupt_object")
    assert await on.store.read_part_end(ROUND_ID, "acme") == end
    assert on.messages.types() == ["sweep.progressed"]
    progress = [cast("Any", event).progress.phase for event in on.messages.published]
    assert progress == ["ended"]
    assert [each.kind for each in (await on.record()).origins] == ["sweep"]


async def test_old_ends_leave_the_record_when_others_are_published() -> None:
    on = Sweeping()
    await _put(on, "acme", ended(OTHER, at=NOW - 1000 * KEEP_FOR), ended(SWEEP, published=False))
    await on.handler.resume("acme")
    assert [each.id for each in (await on.record()).origins] == [SWEEP_ID]


# A step that gives up.


@PROJECTS
async def test_a_record_that_cannot_continue_fails_its_origins(project: str) -> None:
    on = Sweeping()
    await _put(on, project, ended(OTHER), SWEEP)
    with capture_logs() as logs:
        await on.handler.record_failure(_step(3, project), ERROR)
        await on.handler.record_failure(_step(3, project), ERROR)  # its message came twice
    done, failed = (await _found(on, project)).origins
    assert done == ended(OTHER)
    assert failed.end is not None
    assert (failed.status, failed.end.code, failed.end.clean) == ("failed", ERROR.code, False)
    (event,) = cast("list[Any]", on.messages.published)
    assert (event.type, event.project, event.code) == ("sweep.failed", project, ERROR.code)
    (line,) = [line for line in logs if line["event"] == "sweeps failed"]
    assert (line["log_level"], line["project"], line["code"]) == ("error", project, ERROR.code)
    assert on.messages.steps() == []


@PROJECTS
async def test_only_the_current_step_can_fail_a_record(project: str) -> None:
    on = Sweeping()
    await _put(on, project, SWEEP)
    for step in (2, 4):
        await on.handler.record_failure(_step(step, project), ERROR)
    assert (await _found(on, project)).origins == (SWEEP,)
    assert on.messages.published == []


@pytest.mark.parametrize("how", ["its message is replayed", "its request is repeated"])
async def test_a_sweep_whose_step_gave_up_continues_if(how: str) -> None:
    on = Sweeping()
    await on.start()
    await on.deliver()
    await on.handler.record_failure(_step(1), ERROR)
    on.messages.waiting.clear()
    if how == "its message is replayed":
        await on.handler.run_step(_step(1), again=False)
    else:
        await on.start()
    assert (await on.record()).origins[0].is_open
    end = (await on.finish()).end
    assert end is not None
    assert end.clean
    assert on.messages.types().count("sweep.completed") == 1
