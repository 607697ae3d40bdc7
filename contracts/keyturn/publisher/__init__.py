"""The publisher's client (SPEC 6, 11): all that another service imports to use Keyturn.

| module | what it holds |
| --- | --- |
| `client` | `Publisher`: enroll, upload, rotate, sweep, delete, wait, progress, events |
| `requests`, `bodies`, `staging` | building requests; bodies as streams; the claim check |
| `unsettled` | staged uploads sent without an answer, to be sent again with the same body |
| `link` | one connection to the broker, confirmed publishing |
| `events` | streams of events |
| `event_matcher`, `waiting` | which events belong to a request, and waiting for its answer |
| `errors` | how publishing and waiting can end |

It must never import `workers`, and needs aioboto3 only where bodies are staged.
"""

from keyturn.errors import (
    BrokerUnavailableError,
    EventsUnavailableError,
    NotDeliveredError,
    NotSentHereError,
    OutcomeUnknownError,
    PublisherError,
    WaitTimeoutError,
)
from keyturn.publisher.client import Publisher

__all__ = [
    "BrokerUnavailableError",
    "EventsUnavailableError",
    "NotDeliveredError",
    "NotSentHereError",
    "OutcomeUnknownError",
    "Publisher",
    "PublisherError",
    "WaitTimeoutError",
]
