"""The publisher's client (SPEC 6, 11): the API for services that use Keyturn.

    from keyturn import Publisher, PublisherSettings, S3Settings

    async with Publisher.open(PublisherSettings.read(), s3=S3Settings.read()) as publisher:
        upload_id = await publisher.upload("acme", "reports/q3.pdf", Path("q3.pdf"))
        event = await publisher.wait(upload_id, timeout_s=60)

| module | holds |
| --- | --- |
| `client` | `Publisher`: send, enroll, upload, rotate, sweep, delete, wait, progress, events |
| `requests` | building requests: checked, sealed, signed |
| `sessions` | sealing the transport keys of uploads under a session |
| `staging` | bodies as streams; bodies in S3, and their requests kept for a retry |
| `connection` | the broker's address and TLS; one connection to it, confirmed publishing |
| `event_stream` | reading streams of events |
| `event_matcher`, `event_waiter` | the events of a request; waiting for its answer |

Exceptions are in `keyturn.errors`: a `CodedError` for an invalid request, a `PublisherError` for
publishing and waiting. It must never import `keyturn_workers`, and needs aioboto3
(`pip install 'keyturn[staging]'`) only if it stages bodies.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyturn.errors import (
        BrokerTlsError,
        BrokerUnavailableError,
        EventsUnavailableError,
        NotDeliveredError,
        NotSentHereError,
        OutcomeUnknownError,
        PublisherError,
        WaitTimeoutError,
    )
    from keyturn.publisher.client import Publisher
else:
    from keyturn.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        "keyturn.errors",
        "keyturn.publisher.client",
    )

__all__ = [
    "BrokerTlsError",
    "BrokerUnavailableError",
    "EventsUnavailableError",
    "NotDeliveredError",
    "NotSentHereError",
    "OutcomeUnknownError",
    "Publisher",
    "PublisherError",
    "WaitTimeoutError",
]
