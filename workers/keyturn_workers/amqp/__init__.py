"""Between RabbitMQ and a handler: deliveries, retries, dead letters, events (SPEC 6).

| module | what it holds |
| --- | --- |
| `consumer` | one FastStream subscriber per queue |
| `message_consumer` | from a delivery to its acknowledgment, the same for every queue |
| `request_consumer` | requests of publishers: authorized, served, answered by events |
| `retry` | when a failed delivery is retried, and its copy (the delays are in `keyturn.topology`) |
| `publisher` | everything that a worker publishes |
| `confirmed_publisher` | publishing with confirms, many messages at once |
| `dead_letters` | bounds of the dead letters in age and bytes |
| `declarations` | the topology on the broker |
| `locks` | locks on the broker |
| `property_tolerance` | AMQP properties that the client libraries reject |
"""

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
