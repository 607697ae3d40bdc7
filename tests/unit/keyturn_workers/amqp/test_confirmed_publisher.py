"""An event in frames: whole, whatever the broker lets into one (SPEC 6.2)."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from pamqp import body, commands, frame

from keyturn_workers.amqp.confirmed_publisher import _Lane

if TYPE_CHECKING:
    import aiormq


class _Channel(SimpleNamespace):
    """What of aiormq's is used here; unlike its base it can be referred to weakly."""


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [(4, [4, 4, 2]), (10, [10]), (4096, [10]), (0, [10]), (-8, [10])],
)
@pytest.mark.parametrize("text", [b"0123456789", b""])
async def test_all_of_the_body_is_sent(limit: int, sizes: list[int], text: bytes) -> None:
    """RabbitMQ may set no limit to a frame: aiormq then tells a negative one for its content."""
    channel = _Channel(
        number=1,
        max_content_size=limit,
        write_queue=asyncio.Queue(),
        loop=asyncio.get_running_loop(),
        connection=SimpleNamespace(channels={}),
    )
    lane = _Lane(cast("aiormq.Channel", channel), "events", 1)
    sent = lane._frames("told", text, commands.Basic.Properties())
    found = []
    while sent:
        size_bytes, _, part = frame.unmarshal(sent)
        found.append(part)
        sent = sent[size_bytes:]
    parts = [part.value for part in found[2:] if isinstance(part, body.ContentBody)]
    assert len(parts) == len(found) - 2
    assert [len(part) for part in parts] == (sizes if text else [])
    assert b"".join(parts) == text
