"""The broker's side of a channel: delivery tags, and acknowledgments as RabbitMQ takes them.

RabbitMQ looks for the tag among the deliveries that are not acknowledged yet; with `multiple` it
takes all before it too. One that it does not find there, because it was never given or was
acknowledged before, closes the channel: everything that is unacknowledged comes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from aiormq.exceptions import ChannelInvalidStateError

if TYPE_CHECKING:
    from collections.abc import Callable

DeliveryT = TypeVar("DeliveryT")


class Channel(Generic[DeliveryT]):
    """One channel, on which a process consumes one queue.

    Args:
        acknowledged: Called with each delivery that is acknowledged.
        returned: Called with each delivery that goes back into its queue.
        closed_by_broker: Called with the reason, before everything goes back.

    Attributes:
        unacked: The deliveries that the broker waits for, by their tags.
        is_closed: Whether the process knows that it is closed.
    """

    def __init__(
        self,
        acknowledged: Callable[[DeliveryT], None],
        returned: Callable[[DeliveryT], None],
        closed_by_broker: Callable[[str], None],
    ) -> None:
        self.unacked: dict[int, DeliveryT] = {}
        self.is_closed = False
        self._acknowledged = acknowledged
        self._returned = returned
        self._closed_by_broker = closed_by_broker
        self._is_lost = False
        self._tag = 0

    @property
    def is_usable(self) -> bool:
        """Whether the broker delivers on it."""
        return not self._is_lost

    def deliver(self, delivery: DeliveryT) -> int:
        """Give it to the process; returns its tag."""
        assert self.is_usable
        self._tag += 1
        self.unacked[self._tag] = delivery
        return self._tag

    def close(self, *, noticed: bool = True) -> list[DeliveryT]:
        """Take everything back that is unacknowledged; the process may not notice at once."""
        self._is_lost = True
        self.is_closed = self.is_closed or noticed
        back = list(self.unacked.values())
        self.unacked.clear()
        for delivery in back:
            self._returned(delivery)
        return back

    async def basic_ack(self, delivery_tag: int, multiple: bool = False, wait: bool = True) -> None:
        """As that of aiormq."""
        del wait
        for delivery in self._take(delivery_tag, multiple=multiple):
            self._acknowledged(delivery)

    async def basic_nack(
        self, delivery_tag: int, multiple: bool = False, requeue: bool = True, wait: bool = True
    ) -> None:
        """As that of aiormq."""
        del wait
        assert requeue
        for delivery in self._take(delivery_tag, multiple=multiple):
            self._returned(delivery)

    def _take(self, delivery_tag: int, *, multiple: bool) -> list[DeliveryT]:
        if self._is_lost:
            self.is_closed = True
            raise ChannelInvalidStateError("the channel is gone")
        if delivery_tag not in self.unacked:
            # The process learns of it later: its own call succeeds.
            self._closed_by_broker(f"unknown delivery tag {delivery_tag}")
            self.close()
            return []
        tags = [tag for tag in self.unacked if multiple and tag < delivery_tag]
        return [self.unacked.pop(tag) for tag in (*tags, delivery_tag)]
