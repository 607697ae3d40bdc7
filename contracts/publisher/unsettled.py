"""Staged uploads that were sent without an answer, to be sent again as they were (SPEC 6.4).

Staging such a body again would seal it under another transport key, and the first
message, should it stand on the queue after all, could not open it.
Memory is bounded, in number and in time; it must never hold a body or a key.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from contracts.messages import UploadRequested
from contracts.publisher.requests import SignedRequest

MAX_UNSETTLED: Final = 1024
MAX_AGE_S: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class _Sent:
    signed: SignedRequest
    project: str
    key: str
    at_s: float


class Unsettled:
    """What was sent without an answer, by upload id."""

    def __init__(self) -> None:
        self._sent: OrderedDict[str, _Sent] = OrderedDict()

    def earlier(self, request: UploadRequested) -> SignedRequest | None:
        """What was sent before for this upload of this object, where it may stand on the queue."""
        sent = self._sent.get(request.upload_id)
        if sent is None or (sent.project, sent.key) != (request.project, request.key):
            return None
        return sent.signed if time.monotonic() - sent.at_s < MAX_AGE_S else None

    def remember(self, request: UploadRequested, signed: SignedRequest) -> None:
        """Note that this was sent, and that nothing is known of it."""
        before = self._sent.pop(request.upload_id, None)
        at_s = before.at_s if before and before.signed is signed else time.monotonic()
        self._sent[request.upload_id] = _Sent(signed, request.project, request.key, at_s)
        while len(self._sent) > MAX_UNSETTLED:
            self._sent.popitem(last=False)

    def forget(self, upload_id: str) -> None:
        """The broker keeps it: there is nothing to send again."""
        self._sent.pop(upload_id, None)
