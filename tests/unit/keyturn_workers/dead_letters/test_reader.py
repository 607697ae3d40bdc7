"""Reading dead letters: what is missing, and what is empty."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from aio_pika.exceptions import ChannelNotFoundEntity

from keyturn_workers.dead_letters.errors import UnknownQueueError
from keyturn_workers.dead_letters.reader import DeadLetterReader

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel


class _Channel:
    """A broker with one empty queue."""

    async def declare_queue(self, name: str, *, passive: bool) -> Any:
        assert passive
        if name != "keyturn.upload.dead":
            raise ChannelNotFoundEntity(name)
        return SimpleNamespace(declaration_result=SimpleNamespace(message_count=0))


@pytest.fixture
def reader() -> DeadLetterReader:
    return DeadLetterReader(cast("AbstractChannel", _Channel()))


async def test_an_empty_queue_has_no_letters(reader: DeadLetterReader) -> None:
    assert [letter async for letter in reader.read("keyturn.upload.dead", 10)] == []
    await reader.requeue_all()


async def test_a_queue_that_the_broker_does_not_have_is_an_error(
    reader: DeadLetterReader,
) -> None:
    with pytest.raises(UnknownQueueError, match="does not exist on the broker; start a worker"):
        assert [letter async for letter in reader.read("keyturn.plan.dead", 10)]
