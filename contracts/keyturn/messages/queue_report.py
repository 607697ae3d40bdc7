"""A worker's report about one queue that it consumes (SPEC 16.2). Pure."""

from keyturn.messages.fields import (
    Count,
    ExtensibleModel,
    QueueName,
    Seconds,
)


class QueueReport(ExtensibleModel):
    """What one process did with one queue since it began.

    Attributes:
        served: Messages that were served.
        refused: Messages that were refused for good.
        retried: Attempts that ended with a transient error.
        in_flight: Messages that it handles now.
        oldest_s: The age of the oldest of them, by its `requested_at`.
        waited_s: The age of the request that it received last: how far behind the queue is.
        is_consuming: Whether the broker delivers to it.
    """

    queue: QueueName
    served: Count
    refused: Count
    retried: Count
    in_flight: Count
    oldest_s: Seconds | None = None
    waited_s: Seconds | None = None
    is_consuming: bool = True
