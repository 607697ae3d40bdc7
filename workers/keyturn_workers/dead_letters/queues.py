"""Dead-letter queues, and where their letters came from (SPEC 6.2, 6.9). Pure."""

from aio_pika.abc import AbstractIncomingMessage

from keyturn.errors import MalformedRequestError
from keyturn.messages import claimed_type
from keyturn.topology import (
    CONTROL_QUEUE,
    DEAD_QUEUES,
    REQUESTS,
    UNSIGNED_DEAD_QUEUE,
    UPLOAD_QUEUE,
    UPLOAD_REQUESTS,
)
from keyturn_workers.dead_letters.errors import UnknownQueueError


def dead_queue(name: str) -> str:
    """The dead-letter queue of this name, with or without `.dead`.

    Raises:
        UnknownQueueError: there is no such queue.
    """
    dead = f"{name.removesuffix('.dead')}.dead"
    if dead not in DEAD_QUEUES:
        raise UnknownQueueError(f"{name} is not one of {', '.join(DEAD_QUEUES)}")
    return dead


def work_queue(message: AbstractIncomingMessage, dead: str) -> str:
    """The work queue that a letter of this dead-letter queue is replayed to.

    For unsigned messages it follows from the type.

    Raises:
        MalformedRequestError: unsigned, and not of a request type.
    """
    if dead != UNSIGNED_DEAD_QUEUE:
        return dead.removesuffix(".dead")
    claimed = claimed_type(message.body)
    if claimed not in REQUESTS:
        raise MalformedRequestError("it has no request type, so there is no queue to replay it to")
    return UPLOAD_QUEUE if claimed in UPLOAD_REQUESTS else CONTROL_QUEUE
