"""The publisher's client (SPEC 6, 11): all that another service imports to use Keyturn.

| module | what it holds |
| --- | --- |
| `client` | `Publisher`: enroll, upload, rotate, sweep, delete, wait, progress, events |
| `requests`, `bodies`, `staging` | building requests; bodies as streams; the claim check |
| `unsettled` | staged uploads sent without an answer, to be sent again as they were |
| `link` | one connection to the broker, confirmed publishing |
| `events`, `waiting` | the stream of events, and waiting for the answer to a request |
| `errors` | how publishing and waiting can end |

It must never import `workers`, and needs aioboto3 only where bodies are staged.
"""

from contracts.publisher.client import Publisher
from contracts.publisher.errors import (
    BrokerUnavailableError,
    EventsUnavailableError,
    NotDeliveredError,
    OutcomeUnknownError,
    PublisherError,
    WaitTimeoutError,
)

__all__ = [
    "BrokerUnavailableError",
    "EventsUnavailableError",
    "NotDeliveredError",
    "OutcomeUnknownError",
    "Publisher",
    "PublisherError",
    "WaitTimeoutError",
]
