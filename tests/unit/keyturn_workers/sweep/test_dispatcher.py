"""What is published of a sweep, and to whom (SPEC 6.7)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import pytest

from keyturn.errors import CorruptObjectError
from keyturn.messages import RequestOrigin, encode, parse_event
from keyturn_workers.sweep import ALL, AllPlan, Plan, SweepDispatcher, SweepRequest
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import State, from_json, to_json

if TYPE_CHECKING:
    from keyturn.messages import Event

SWEEP_ID = "2f6c9a0e-1111-4111-8111-111111111111"
NOW = datetime.now(UTC)
ONE, AGAIN = RequestOrigin("one", "1" * 64), RequestOrigin("one", "a" * 64)
TWO = RequestOrigin("two", "2" * 64)
COUNTS = Counts(objects=3, current=3)


class Sender:
    """Notes what is published, as its readers get it."""

    def __init__(self) -> None:
        self.published: list[Event] = []

    async def publish_event(self, event: Event) -> None:
        self.published.append(parse_event(encode(event)))

    async def send(self, *_: Any) -> None:
        raise AssertionError("no message of its own")


def _plan(kind: Any = "rotation", **more: Any) -> Plan:
    state = State(2, "9f86d081884c7d65", "m1", plaintext=False, etag="e")
    return Plan(SweepRequest(kind, SWEEP_ID, "acme", ""), state, NOW, NOW, **more)


@pytest.mark.parametrize("refused", [True, False, None])
async def test_the_end_names_its_request_and_what_its_proof_rests_on(refused: Any) -> None:
    sender = Sender()
    plan = _plan(proven=COUNTS, clean=True, late_writes_refused=refused, evidence="e" * 64)
    await SweepDispatcher(sender).publish_end(plan, ONE)
    (event,) = cast("list[Any]", sender.published)
    assert (event.type, event.rotation_id, event.origin) == ("rotation.completed", SWEEP_ID, ONE)
    assert (event.objects, event.clean, event.late_writes_refused) == (3, True, refused)
    assert event.evidence == "e" * 64


async def test_the_end_of_a_sweep_of_all_says_the_same() -> None:
    sender = Sender()
    plan = AllPlan(
        SweepRequest("sweep", SWEEP_ID, ALL, ""), NOW, sums=COUNTS, late_writes_refused=False
    )
    await SweepDispatcher(sender).publish_end(plan, TWO)
    (event,) = cast("list[Any]", sender.published)
    assert (event.type, event.project, event.origin) == ("sweep.completed", "*", TWO)
    assert (event.late_writes_refused, event.evidence) == (False, None)


@pytest.mark.parametrize("kind", ["rotation", "sweep"])
async def test_a_sweep_that_cannot_continue_has_failed(kind: str) -> None:
    sender = Sender()
    await SweepDispatcher(sender).publish_failure(
        _plan(kind).ask, CorruptObjectError("the keyring"), ONE
    )
    (event,) = cast("list[Any]", sender.published)
    assert (event.type, event.code, event.origin) == (f"{kind}.failed", "corrupt_object", ONE)


async def test_progress_is_published_once_to_each_publisher() -> None:
    sender = Sender()
    await SweepDispatcher(sender).publish_progress(_plan().ask, COUNTS, (ONE, AGAIN, TWO, None))
    assert [event.origin for event in sender.published] == [ONE, TWO, None]


async def test_a_record_of_0_4_names_no_publisher_and_its_events_carry_neither_field() -> None:
    added = ("origins", "successor", "late_writes_refused", "evidence", "envelope", "dated_pages")
    old = {name: value for name, value in to_json(_plan()).items() if name not in added}
    plan = from_json(Plan, old)
    assert (plan.origins, plan.successor) == ((None,), None)
    sender = Sender()
    for origin in plan.origins:
        await SweepDispatcher(sender).publish_end(plan, origin)
    (event,) = cast("list[Any]", sender.published)
    assert (event.publisher, event.request, event.late_writes_refused) == (None, None, None)
