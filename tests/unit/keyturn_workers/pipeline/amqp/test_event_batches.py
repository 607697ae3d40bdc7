"""Events gather while one is being published, and each learns its own outcome (SPEC 6.7)."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest

from keyturn.messages import EVENT_BATCH_MAX_BYTES, encode_batch
from keyturn_workers.pipeline.amqp.event_batches import EventBatches, NotConfirmedError
from tests.unit.keyturn_workers.pipeline.amqp.connections import ClockedLoop

if TYPE_CHECKING:
    from collections.abc import Iterator

HOLD_S = 0.005
_CALLER = ContextVar("_CALLER", default="")


class _Publishing:
    """A broker that confirms, or refuses, each message when the test says so."""

    def __init__(self) -> None:
        self.clocked = ClockedLoop()
        self.batches = EventBatches(self._send, hold_s=HOLD_S)
        self.sent: list[str] = []
        self.callers: list[str] = []
        self._confirmations: list[asyncio.Future[None]] = []

    def publish(self, *bodies: str, lane: str = "upload.stored api") -> list[asyncio.Task[None]]:
        """Each by a caller of its own."""
        event_type, publisher = lane.split()

        async def caller(body: str) -> None:
            _CALLER.set(body)
            await self.batches.publish(event_type, publisher, body.encode())

        tasks = [self.clocked.loop.create_task(caller(body)) for body in bodies]
        self.clocked.run()
        return tasks

    def end(self, number: int, error: BaseException | None = None) -> None:
        def end() -> None:
            if error is None:
                self._confirmations[number].set_result(None)
            else:
                self._confirmations[number].set_exception(error)

        self.clocked.run(end)

    async def _send(self, event_type: str, publisher: str, bodies: tuple[bytes, ...]) -> None:
        self.sent.append(f"{event_type} {publisher} {b' '.join(bodies).decode()}")
        self.callers.append(_CALLER.get())
        self._confirmations.append(asyncio.get_running_loop().create_future())
        await self._confirmations[-1]

    @property
    def batched(self) -> list[str]:
        return [sent.split(" ", 2)[2] for sent in self.sent]


@pytest.fixture
def publishing() -> Iterator[_Publishing]:
    made = _Publishing()
    yield made
    made.clocked.close()


def _outcome(task: asyncio.Task[None]) -> str:
    if not task.done():
        return "waits"
    if task.cancelled():
        return "canceled"
    error = task.exception()
    assert error is None or isinstance(error, NotConfirmedError)
    return "published" if error is None else str(error)


def test_an_event_goes_alone_at_once_where_nothing_is_in_flight(publishing: _Publishing) -> None:
    for number, body in enumerate("abc"):
        (task,) = publishing.publish(body)
        assert publishing.batched == list("abc"[: number + 1])
        assert _outcome(task) == "waits"
        publishing.end(number)
        assert _outcome(task) == "published"
    assert publishing.batches._lanes == {}


def test_what_ends_while_one_is_in_flight_goes_together_once_that_is_confirmed(
    publishing: _Publishing,
) -> None:
    first, *others = publishing.publish("a", "b", "c")
    others += publishing.publish("d")
    assert publishing.batched == ["a"]
    publishing.end(0)
    assert publishing.batched == ["a", "b c d"]
    assert [_outcome(first), *map(_outcome, others)] == ["published", *["waits"] * 3]
    publishing.end(1)
    assert set(map(_outcome, others)) == {"published"}
    assert publishing.batches._lanes == {}


def test_each_type_and_publisher_has_its_own_batches(publishing: _Publishing) -> None:
    publishing.publish("a", "b")
    publishing.publish("c", "d", lane="upload.stored ui")
    publishing.publish("e", lane="object.deleted api")
    for number in range(3):
        publishing.end(number)
    assert publishing.sent == [
        "upload.stored api a",
        "upload.stored ui c",
        "object.deleted api e",
        "upload.stored api b",
        "upload.stored ui d",
    ]


def test_a_slow_publish_holds_others_back_for_a_moment_only(publishing: _Publishing) -> None:
    first, second = publishing.publish("a", "b")
    publishing.clocked.pass_time(HOLD_S - 0.001)
    third = publishing.publish("c")[0]
    assert publishing.batched == ["a"]
    publishing.clocked.pass_time(0.001)
    assert publishing.batched == ["a", "b c"]
    fourth = publishing.publish("d")[0]
    publishing.clocked.pass_time(HOLD_S)
    fifth = publishing.publish("e")[0]
    publishing.clocked.pass_time(HOLD_S)
    sixth = publishing.publish("f")[0]
    assert publishing.batched == ["a", "b c", "d", "e"]
    publishing.end(1)
    publishing.end(3)
    assert publishing.batched == ["a", "b c", "d", "e", "f"]
    outcomes = [_outcome(each) for each in (first, second, third, fourth, fifth, sixth)]
    assert outcomes == ["waits", "published", "published", "waits", "published", "waits"]
    for number in (0, 2, 4):
        publishing.end(number)
    assert publishing.batches._lanes == {}


def test_an_event_goes_at_once_behind_one_that_has_taken_long(publishing: _Publishing) -> None:
    publishing.publish("a")
    publishing.clocked.pass_time(HOLD_S)
    publishing.publish("b")
    assert publishing.batched == ["a", "b"]


def test_an_event_goes_at_once_behind_a_batch_that_has_taken_long_too(
    publishing: _Publishing,
) -> None:
    publishing.publish("a", "b")
    publishing.clocked.pass_time(2 * HOLD_S)
    publishing.publish("c")
    assert publishing.batched == ["a", "b", "c"]


def test_a_batch_that_has_ended_holds_nothing_back(publishing: _Publishing) -> None:
    """Though one before it is still in flight."""
    publishing.publish("a", "b")
    publishing.clocked.pass_time(HOLD_S)
    publishing.end(1)
    publishing.publish("c")
    assert publishing.batched == ["a", "b", "c"]


def test_a_batch_has_at_most_64_events(publishing: _Publishing) -> None:
    publishing.publish("a")
    publishing.publish(*map(str, range(130)))
    sizes = [len(batch.split()) for batch in publishing.batched]
    assert sizes == [1, 64, 64]
    publishing.end(2)
    assert len(publishing.batched[3].split()) == 2


def test_a_batch_has_at_most_256_kib(publishing: _Publishing) -> None:
    publishing.publish("a")
    publishing.publish("b" * 200_000, "c" * 62_095, "d" * 10)
    assert [len(batch) for batch in publishing.batched] == [1]
    publishing.publish("e" * 300_000)
    publishing.publish("f")
    assert [len(batch) for batch in publishing.batched] == [1, 262_107, 300_000]


@pytest.mark.parametrize("over_bytes", range(-3, 4))
def test_no_batch_is_longer_than_readers_take(publishing: _Publishing, over_bytes: int) -> None:
    """One byte more, and each of its events would be lost to every reader."""
    event_type = "upload.stored"
    publishing.publish("a")
    room = EVENT_BATCH_MAX_BYTES - len(encode_batch(event_type, (b"", b"")))
    publishing.publish("b" * 200_000, "c" * (room - 200_000 + over_bytes))
    for number in range(2):
        publishing.end(number)
    bodies = [[body.encode() for body in batch.split()] for batch in publishing.batched]
    sizes = [len(encode_batch(event_type, batch)) for batch in bodies]
    assert sum(map(len, bodies)) == 3
    assert max(sizes) <= EVENT_BATCH_MAX_BYTES


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (NotConfirmedError("DeliveryError"), "DeliveryError"),
        (ValueError("b"), "ValueError"),
        (asyncio.CancelledError(), "canceled"),
    ],
)
def test_a_failure_is_that_of_one_batch(
    publishing: _Publishing, error: BaseException, problem: str
) -> None:
    """Each of its callers gets an error of its own, and the next batch goes out by itself."""
    first, *others = publishing.publish("a", "b", "c")
    publishing.end(0, error)
    assert _outcome(first) == problem
    assert publishing.batched == ["a", "b c"]
    later = publishing.publish("d")
    publishing.end(1, error)
    assert list(map(_outcome, others)) == [problem, problem]
    assert others[0].exception() is not others[1].exception()
    publishing.end(2)
    assert _outcome(later[0]) == "published"
    assert publishing.batches._lanes == {}


def test_a_caller_that_is_canceled_cancels_nobody(publishing: _Publishing) -> None:
    """Not the batch that it is in, be it in flight or not, nor its own event."""
    first, second, third = publishing.publish("a", "b", "c")
    publishing.clocked.run(first.cancel)
    publishing.clocked.run(second.cancel)
    publishing.end(0)
    assert publishing.batched == ["a", "b c"]
    publishing.end(1)
    assert [_outcome(each) for each in (first, second, third)] == [
        "canceled",
        "canceled",
        "published",
    ]


def test_a_batch_has_the_context_of_no_caller(publishing: _Publishing) -> None:
    """It would belong to the trace of one of them, and end with its delivery."""
    publishing.publish("a", "b")
    publishing.clocked.pass_time(HOLD_S)
    publishing.publish("c", "d")
    publishing.end(1)
    assert publishing.batched == ["a", "b", "c d"]
    assert publishing.callers == ["", "", ""]
