"""Batches of a queue that is read: few enough to go back in order, small enough to go back soon."""

from __future__ import annotations

import pytest

from keyturn_workers.amqp.queue_browser import MAX_BATCHES, batch_size

_COMMANDS = 32
"""Commands of a channel on their way to a quorum queue; one is left for the flush."""


@pytest.mark.parametrize("count", [1, 2048, 57_344, 57_345, 100_000, 200_000, 1_000_000])
def test_there_are_fewer_batches_than_the_broker_keeps_in_order(count: int) -> None:
    batches = -(-count // batch_size(count))
    assert batches <= MAX_BATCHES < _COMMANDS


def test_a_batch_is_never_larger_than_a_prefetch() -> None:
    assert batch_size(10**8) == 65_535
    assert batch_size(1) == batch_size(50_000) == 2048
