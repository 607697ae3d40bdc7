"""Whether the broker has a subscriber of this process as a consumer of its queue (SPEC 11).

A subscriber that FastStream calls running says nothing of that: the broker ends a consumer on
its own where its queue is deleted, and one that a reconnection could not bring back is gone
while the connection stands. The open channel knows: it forgets a consumer's tag when the
broker cancels it, and a channel that was closed is not the one that is open now.
"""

import aio_pika
import aiormq
from faststream.rabbit.subscriber import RabbitSubscriber


def is_registered(subscriber: RabbitSubscriber) -> bool:
    """Whether its consumer stands on an open channel, as the broker last told.

    Asks nobody, and waits for nothing, a reconnection neither.
    """
    # Neither FastStream nor aio-pika shows these to others. A release that names them
    # otherwise would make every worker unready, which the tests of readiness see.
    queue, tag = subscriber._queue_obj, subscriber._consumer_tag  # noqa: SLF001
    channel = None if queue is None else queue.channel
    if not isinstance(channel, aio_pika.Channel) or channel.is_closed:
        return False
    underlay = channel._channel  # noqa: SLF001
    opened = None if underlay is None else underlay.channel
    return isinstance(opened, aiormq.Channel) and tag in opened.consumers
