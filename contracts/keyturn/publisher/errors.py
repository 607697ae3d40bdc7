"""What publishing and waiting can end in, beside the codes of SPEC 12.

    PublisherError
     ├── NotDeliveredError        nothing was sent, or the broker gave it back
     │    └── BrokerUnavailableError
     ├── OutcomeUnknownError      sent, and nobody can say what became of it
     ├── EventsUnavailableError   there is no stream of events to follow
     ├── NotSentHereError         another process's request, of which too little is known
     └── WaitTimeoutError         no event came in time (also a TimeoutError)

What is wrong with the request itself is a `keyturn.errors.KeyturnError`, raised before
anything is sent: `malformed_request`, `body_too_large` (no staging is configured),
`storage_unavailable` (staging failed). None of them ever holds a secret or a body.
"""


class PublisherError(Exception):
    """The base of all below."""


class NotDeliveredError(PublisherError):
    """The request stands on no queue. What was staged for it is deleted again.

    Publish it again, with the same id or a new one, once the reason is mended.
    """


class BrokerUnavailableError(NotDeliveredError):
    """The broker could not be reached in time; nothing was sent."""


class OutcomeUnknownError(PublisherError):
    """The broker did not confirm: the request may stand on its queue, or may not.

    Publish it again **with the same id**: a request that comes twice takes effect once.
    """


class EventsUnavailableError(PublisherError):
    """The stream of events does not exist yet, or this user may not read it."""


class NotSentHereError(PublisherError):
    """This publisher did not send the request, or has forgotten it: name project and type.

    An id alone does not name a request: any publisher may use any id.
    """


class WaitTimeoutError(PublisherError, TimeoutError):
    """No event of that request came in time. Waiting again is fine; nothing was lost."""
