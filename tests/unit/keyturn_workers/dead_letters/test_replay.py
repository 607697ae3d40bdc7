"""A letter goes back as it was sent, and is acknowledged only then (SPEC 12)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from aio_pika.exceptions import DeliveryError

from keyturn.errors import MalformedRequestError
from keyturn.topology import UPLOAD_QUEUE
from keyturn_workers.dead_letters.replay import check_body_kept, original, send_back
from tests.unit.keyturn_workers.dead_letters.letters import FakeReader, letter, upload

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel


def test_a_letter_goes_back_without_what_workers_added() -> None:
    dead = letter(upload())
    copy = original(dead.message)
    assert (copy.body, copy.message_id) == (dead.body, dead.message_id)
    assert set(copy.headers) == {"keyturn-publisher", "keyturn-signature", "own"}


def test_a_letter_without_its_body_cannot_be_replayed() -> None:
    check_body_kept(letter(upload()).message)
    dropped = letter(upload(), "already_exists", **{"keyturn-body-dropped": "0" * 64})
    with pytest.raises(MalformedRequestError, match="with already_exists the body is not kept"):
        check_body_kept(dropped.message)


async def test_a_letter_is_acknowledged_after_its_copy_is_confirmed() -> None:
    reader, dead = FakeReader(), letter(upload())
    channel = cast("AbstractChannel", reader)
    reader.refusal = DeliveryError(None, None)  # type: ignore[arg-type]
    with pytest.raises(DeliveryError):
        await send_back(channel, dead.message, original(dead.message), UPLOAD_QUEUE)
    assert (reader.sent, dead.acknowledged) == ([], False)
    reader.refusal = None
    await send_back(channel, dead.message, original(dead.message), UPLOAD_QUEUE)
    assert dead.acknowledged
    assert [queue for queue, _ in reader.sent] == [UPLOAD_QUEUE]
