"""Reading dead letters: all of them, so that they keep their order; a limit bounds what is kept."""

from __future__ import annotations

import pytest

from keyturn_workers.dead_letters.errors import UnknownQueueError
from keyturn_workers.dead_letters.reader import DeadLetterReader
from tests.unit.keyturn_workers.amqp.memory_broker import MemoryBroker
from tests.unit.keyturn_workers.dead_letters.letters import Letter

_DEAD, _OTHER = "keyturn.upload.dead", "keyturn.plan.dead"


def _letters(count: int) -> list[Letter]:
    return [Letter(b"{}", {}, str(number)) for number in range(count)]


def _names(broker: MemoryBroker, queue: str) -> list[str | None]:
    return [letter.message_id for letter in broker.queues[queue]]


async def test_an_empty_queue_has_no_letters() -> None:
    broker = MemoryBroker()
    broker.fill(_DEAD)
    reader = DeadLetterReader(broker.channel())
    assert [letter async for letter in reader.read(_DEAD, 10)] == []
    await reader.requeue_all()


async def test_a_queue_that_the_broker_does_not_have_is_an_error() -> None:
    reader = DeadLetterReader(MemoryBroker().channel())
    with pytest.raises(UnknownQueueError, match="does not exist on the broker; start a worker"):
        assert [letter async for letter in reader.read(_DEAD, 10)]


async def test_letters_beyond_the_limit_go_back_in_their_order_too() -> None:
    broker = MemoryBroker()
    broker.fill(_DEAD, *_letters(5))
    broker.fill(_OTHER, *_letters(3))
    reader = DeadLetterReader(broker.channel())
    read = [letter.message_id async for letter in reader.read(_DEAD, 2)]
    assert (read, _names(broker, _DEAD)) == (["0", "1"], [])
    assert len([letter async for letter in reader.read(_OTHER, 10)]) == 3
    await reader.requeue_all()
    assert _names(broker, _DEAD) == ["0", "1", "2", "3", "4"]
    assert _names(broker, _OTHER) == ["0", "1", "2"]


async def test_an_acknowledged_letter_does_not_come_back() -> None:
    broker = MemoryBroker()
    broker.fill(_DEAD, *_letters(4))
    reader = DeadLetterReader(broker.channel())
    async for letter in reader.read(_DEAD, 3):
        if letter.message_id == "1":
            await letter.ack()
    await reader.requeue_all()
    assert _names(broker, _DEAD) == ["0", "2", "3"]
