"""What flows into the console's model: streams, queues, reports (SPEC 16.1, 16.2)."""

from keyturn_workers.console.feeds.feeds import Feeds, FeedSettings
from keyturn_workers.console.feeds.requester import (
    PausedError,
    StatusArguments,
    StatusPublisher,
    StatusRequester,
)

__all__ = [
    "FeedSettings",
    "Feeds",
    "PausedError",
    "StatusArguments",
    "StatusPublisher",
    "StatusRequester",
]
