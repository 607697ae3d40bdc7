"""Between RabbitMQ and a role: deliveries, retries, dead letters, events (SPEC 6)."""

from workers.broker.consumer import Consumer, Done, Role
from workers.broker.teller import Teller

__all__ = ["Consumer", "Done", "Role", "Teller"]
