"""Staged uploads without a known outcome, kept for a retry with the same body (SPEC 6.4).

To stage such a body again would seal it under another transport key, and the first message, if
it is on the queue after all, could not open it. So the request is kept with its sealed key and
signed again for each attempt.
Memory is bounded in number and in time. It must never hold a body or a transport key.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from keyturn.messages import UploadRequested

MAX_PENDING: Final = 1024
MAX_AGE_S: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class _Sent:
    request: UploadRequested
    at_s: float


class PendingUploads:
    """Requests that were sent without a confirmation, by upload id."""

    def __init__(self) -> None:
        self._sent: OrderedDict[str, _Sent] = OrderedDict()

    def earlier(self, request: UploadRequested) -> UploadRequested | None:
        """The earlier request for this upload of this object, if it may be on the queue."""
        sent = self._sent.get(request.upload_id)
        if sent is None or not _is_of_one_object(sent.request, request):
            return None
        return sent.request if time.monotonic() - sent.at_s < MAX_AGE_S else None

    def remember(self, request: UploadRequested) -> None:
        """Keep a request whose outcome is unknown."""
        before = self._sent.pop(request.upload_id, None)
        # Its age is that of the body in staging.
        again = before is not None and before.request.sealed_key == request.sealed_key
        at_s = before.at_s if before is not None and again else time.monotonic()
        self._sent[request.upload_id] = _Sent(request, at_s)
        while len(self._sent) > MAX_PENDING:
            self._sent.popitem(last=False)

    def forget(self, upload_id: str) -> None:
        """Drop a request that the broker has confirmed."""
        self._sent.pop(upload_id, None)


def _is_of_one_object(one: UploadRequested, other: UploadRequested) -> bool:
    return (one.project, one.key) == (other.project, other.key)
