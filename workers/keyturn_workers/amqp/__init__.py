"""Between RabbitMQ and a role: deliveries, retries, dead letters, events (SPEC 6)."""

from keyturn_workers.amqp.direct import consume_directly
from keyturn_workers.amqp.leaving import take_no_more
from keyturn_workers.amqp.publisher import NotConfirmedError, WorkerPublisher
from keyturn_workers.amqp.registered import is_registered
from keyturn_workers.amqp.request_consumer import Consumer, DeferError, Handled, RequestHandler

__all__ = [
    "Consumer",
    "DeferError",
    "Handled",
    "NotConfirmedError",
    "RequestHandler",
    "WorkerPublisher",
    "consume_directly",
    "is_registered",
    "take_no_more",
]
