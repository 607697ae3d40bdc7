"""Between RabbitMQ and a handler: deliveries, retries, dead letters, events (SPEC 6).

| module | what it holds |
| --- | --- |
| `consumer` | `QueueConsumer`: a FastStream subscriber that gives each delivery to a callable |
| `message_consumer` | `MessageConsumer`: that callable; from a delivery to its acknowledgment |
| `request_consumer` | `RequestConsumer`: a `MessageConsumer` that authorizes and answers requests |
| `worker_publisher` | everything that a worker publishes |
| `confirmed_publisher` | publishing with confirms, many messages at once |
| `retry` | when a failed delivery is retried, and its copy (the delays are in `keyturn.topology`) |
| `declarations` | the topology on the broker |
| `locks` | locks on the broker |
| `property_tolerance` | AMQP properties that the client libraries reject |

The other `MessageConsumer` is `sweep.hint_consumer`, for the workers' own messages. A `publisher`
here is always the service that signed a request; what a worker itself publishes goes through
its `worker_publisher`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from keyturn_workers.amqp.consumer import (
        DirectConsumer,
        QueueConsumer,
        SubscriberConsumer,
        finish,
    )
    from keyturn_workers.amqp.message_consumer import ConsumerContext, DeferError
    from keyturn_workers.amqp.request_consumer import (
        Handled,
        RequestConsumer,
        RequestHandler,
        TimeSource,
    )
    from keyturn_workers.amqp.worker_publisher import NotConfirmedError, WorkerPublisher

# Imported when first used: FastStream takes long to import, and most commands do without it.
_MODULES: Final = {
    "ConsumerContext": "message_consumer",
    "DeferError": "message_consumer",
    "DirectConsumer": "consumer",
    "Handled": "request_consumer",
    "NotConfirmedError": "worker_publisher",
    "QueueConsumer": "consumer",
    "RequestConsumer": "request_consumer",
    "RequestHandler": "request_consumer",
    "SubscriberConsumer": "consumer",
    "TimeSource": "request_consumer",
    "WorkerPublisher": "worker_publisher",
    "finish": "consumer",
}

__all__ = [
    "ConsumerContext",
    "DeferError",
    "DirectConsumer",
    "Handled",
    "NotConfirmedError",
    "QueueConsumer",
    "RequestConsumer",
    "RequestHandler",
    "SubscriberConsumer",
    "TimeSource",
    "WorkerPublisher",
    "finish",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
