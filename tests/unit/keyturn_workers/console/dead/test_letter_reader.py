"""Queues are read whole, and whole letters are shown without what may be secret (SPEC 12)."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from keyturn_workers.console.dead import letter_reader
from keyturn_workers.console.dead.letter_reader import read_details, read_queue
from keyturn_workers.console.dead.letters import Compactor
from keyturn_workers.dead_letters.queue import UnknownQueueError
from tests.unit.keyturn_workers.console.dead.letters import UPLOADS
from tests.unit.keyturn_workers.dead_letters.letters import Letter, letter, upload
from tests.unit.keyturn_workers.dead_letters.memory_broker import MemoryBroker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractChannel


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    made = MemoryBroker()

    @asynccontextmanager
    async def opened(*_: Any) -> AsyncIterator[AbstractChannel]:
        yield made.channel()

    monkeypatch.setattr(letter_reader, "locked_channel", opened)
    return made


def _digest(sent: Letter) -> int:
    return Compactor().compact(sent.message, UPLOADS).digest


async def test_a_queue_is_read_and_every_letter_goes_back(broker: MemoryBroker) -> None:
    letters = [letter(upload()) for _ in range(5)]
    broker.fill(UPLOADS, *letters)
    read = await read_queue("amqp://", UPLOADS, 1)
    assert [each.message_id for each in read.letters] == [each.message_id for each in letters]
    assert read.count == 5
    assert list(broker.queues[UPLOADS]) == letters


async def test_of_very_many_letters_the_oldest_are_kept(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letter_reader, "LETTERS_MAX", 3)
    letters = [letter(upload()) for _ in range(5)]
    broker.fill(UPLOADS, *letters)
    read = await read_queue("amqp://", UPLOADS, 1)
    assert (len(read.letters), read.count) == (3, 5)
    assert list(broker.queues[UPLOADS]) == letters


async def test_a_queue_that_does_not_exist_is_an_error(broker: MemoryBroker) -> None:
    assert broker.queues == {}
    with pytest.raises(UnknownQueueError):
        await read_queue("amqp://", UPLOADS, 1)


async def test_a_whole_letter_shows_no_sealed_part(broker: MemoryBroker) -> None:
    document = upload()
    sent = letter(document)
    broker.fill(UPLOADS, letter(upload()), sent)
    found = await read_details("amqp://", UPLOADS, frozenset({_digest(sent), 7}), 1)
    (details,) = found.values()
    assert details.letter.message_id == document["upload_id"]
    assert '"key": "k"' in details.body
    assert document["body"]["inline"] not in details.body
    assert document["sealed_key"]["ciphertext"] not in details.body
    assert '"keyturn-code": "request_expired"' in details.headers
    assert ("content type", "application/json") in details.properties


async def test_identical_copies_are_counted(broker: MemoryBroker) -> None:
    sent = letter(upload())
    broker.fill(UPLOADS, sent, Letter(sent.body, sent.headers, sent.message_id))
    found = await read_details("amqp://", UPLOADS, frozenset({_digest(sent)}), 1)
    assert found[_digest(sent)].copies == 2


async def test_what_is_shown_of_a_letter_is_bounded(broker: MemoryBroker) -> None:
    sent = Letter(b"{}", {"x": "y" * 90_000})
    broker.fill(UPLOADS, sent)
    (details,) = (await read_details("amqp://", UPLOADS, frozenset({_digest(sent)}), 1)).values()
    assert len(details.headers) < 66_000
    assert details.headers.endswith("more characters")
