"""What is published of a sweep and to whom, and which hints are sent (SPEC 6.7, 8.5)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.counts import Counts
from keyturn.messages import RequestOrigin, encode, parse_event
from keyturn.progress import Progress
from keyturn.topology import PLAN_QUEUE, SWEEP_QUEUE
from keyturn_workers.core.sweep_record import ALL, AllRecord
from keyturn_workers.pipeline.sweep.messages import (
    Hint,
    SweepDispatcher,
    SweepPage,
    SweepStep,
    end_event,
    parse,
)
from tests.unit.keyturn_workers.pipeline.sweep.records import (
    PAGE,
    RECORD,
    ROUND_ID,
    SWEEP,
    SWEEP_ID,
    ended,
    origin,
)

if TYPE_CHECKING:
    from keyturn.messages import Event
    from keyturn_workers.core.sweep_record import Origin

ONE, AGAIN = RequestOrigin("api", "1" * 64), RequestOrigin("api", "a" * 64)
ASKED = origin("rotation", digests=(ONE.request, AGAIN.request))
COUNTS = Counts(objects=3, current=3)


class Sender:
    """Notes what is published, as its readers get it, and what is sent."""

    def __init__(self) -> None:
        self.published: list[Event] = []
        self.sent: list[tuple[Hint, str, int]] = []

    async def publish_event(self, event: Event) -> None:
        self.published.append(parse_event(encode(event)))

    async def send(self, body: bytes, queue: str, delay_s: int) -> None:
        self.sent.append((parse(body), queue, delay_s))

    def event(self) -> Any:
        (event,) = self.published
        return event


def _ended(of: Origin, **more: Any) -> Origin:
    end = ended(of, **more).end
    assert end is not None
    return replace(of, end=replace(end, counts=COUNTS))


@pytest.mark.parametrize("refused", [True, False, None])
async def test_the_end_names_its_request_and_what_its_proof_rests_on(refused: Any) -> None:
    sender = Sender()
    done = _ended(
        origin("rotation", digests=(ONE.request,)), late_writes_refused=refused, evidence="e" * 64
    )
    await SweepDispatcher(sender).publish_end("acme", done)
    event = sender.event()
    assert (event.type, event.rotation_id, event.origin) == ("rotation.completed", SWEEP_ID, ONE)
    assert (event.objects, event.clean, event.late_writes_refused) == (3, True, refused)
    assert event.evidence == "e" * 64


async def test_the_end_of_a_sweep_of_all_says_the_same() -> None:
    sender = Sender()
    await SweepDispatcher(sender).publish_end(ALL, _ended(SWEEP, late_writes_refused=False))
    event = sender.event()
    assert (event.type, event.project, event.sweep_id) == ("sweep.completed", "*", SWEEP_ID)
    assert (event.late_writes_refused, event.evidence) == (False, None)


@pytest.mark.parametrize("kind", ["rotation", "sweep"])
async def test_a_sweep_that_cannot_continue_has_failed(kind: Any) -> None:
    sender = Sender()
    failed = ended(origin(kind), clean=False, code="corrupt_object", detail="the keyring")
    await SweepDispatcher(sender).publish_end("acme", failed)
    event = sender.event()
    assert (event.type, event.code, event.detail) == (
        f"{kind}.failed",
        "corrupt_object",
        "the keyring",
    )


async def test_an_end_is_published_to_each_of_its_requests() -> None:
    sender = Sender()
    await SweepDispatcher(sender).publish_end("acme", ended(ASKED))
    assert [event.origin for event in sender.published] == [ONE, AGAIN]


async def test_progress_is_published_once_whatever_was_repeated() -> None:
    """It is matched by all but the digest."""
    sender = Sender()
    await SweepDispatcher(sender).publish_progress(
        "acme", ASKED, COUNTS, progress=Progress(phase="proving", done=1, total=2)
    )
    event = sender.event()
    assert (event.type, event.origin) == ("sweep.progressed", ONE)
    assert (event.sweep_id, event.objects, event.clean) == (SWEEP_ID, 3, False)
    assert event.progress.phase == "proving"


def test_there_is_no_event_of_an_end_before_it() -> None:
    with pytest.raises(ValueError, match="not ended"):
        end_event("acme", SWEEP)


@pytest.mark.parametrize("record", [RECORD, AllRecord(step=3)], ids=["project", "all"])
async def test_a_step_is_sent_in_about_the_time_that_it_may_wait(record: Any) -> None:
    sender = Sender()
    for wait_s in (0, 1.0, 8.9):
        await SweepDispatcher(sender).send_step(record, wait_s)
    hint = SweepStep(project=record.project, step=3)
    assert sender.sent == [(hint, PLAN_QUEUE, delay_s) for delay_s in (0, 1, 5)]


async def test_a_page_is_sent_with_its_attempt() -> None:
    sender = Sender()
    await SweepDispatcher(sender).send_page("acme", ROUND_ID, replace(PAGE, page=2, attempts=7))
    hint = SweepPage(project="acme", round=ROUND_ID, page=2, attempt=7)
    assert sender.sent == [(hint, SWEEP_QUEUE, 0)]
