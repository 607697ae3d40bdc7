"""Why dead letters cannot be read.

DeadLetterError
├── UnknownQueueError   no dead-letter queue has this name, or the broker does not have it
└── LockedError         a worker, a command or a console is reading the letters
"""


class DeadLetterError(Exception):
    """Dead letters cannot be read; the text is one line for the operator."""


class UnknownQueueError(DeadLetterError):
    """No dead-letter queue has this name, or the broker does not have it."""


class LockedError(DeadLetterError):
    """Another process reads the letters, and did not end in time."""
