"""Between RabbitMQ and a handler: deliveries, retries, dead letters, events (SPEC 6)."""

from keyturn_workers.amqp.consumer import QueueConsumer
from keyturn_workers.amqp.message_consumer import ConsumerContext, DeferError
from keyturn_workers.amqp.publisher import NotConfirmedError, WorkerPublisher
from keyturn_workers.amqp.request_consumer import (
    Handled,
    RequestConsumer,
    RequestHandler,
    TimeSource,
)

__all__ = [
    "ConsumerContext",
    "DeferError",
    "Handled",
    "NotConfirmedError",
    "QueueConsumer",
    "RequestConsumer",
    "RequestHandler",
    "TimeSource",
    "WorkerPublisher",
]
