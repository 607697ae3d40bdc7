"""Between RabbitMQ and a role: deliveries, retries, dead letters, events (SPEC 6)."""

from workers.broker.consumer import Consumer, Done, NotYetError, Role
from workers.broker.direct import consume_directly
from workers.broker.leaving import take_no_more
from workers.broker.registered import is_registered
from workers.broker.teller import NotConfirmedError, Teller

__all__ = [
    "Consumer",
    "Done",
    "NotConfirmedError",
    "NotYetError",
    "Role",
    "Teller",
    "consume_directly",
    "is_registered",
    "take_no_more",
]
