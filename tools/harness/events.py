"""The events in a message as it came from the broker: one, or a batch of them (SPEC 6.7)."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keyturn.crypto import VerifyKey


def documents_in(body: bytes) -> list[dict[str, Any]]:
    """The events that an unverified message claims to hold; none if it is no JSON object."""
    document: Any = None
    with suppress(ValueError):
        document = json.loads(body)
    if not isinstance(document, dict):
        return []
    if document.keys() == {"type", "events"}:
        return list(document["events"])
    return [document]


def verified_events(
    verify: VerifyKey, deployment: str, body: bytes, signature: str
) -> list[dict[str, Any]]:
    """The events of a message.

    Raises:
        SignatureError: the deployment did not sign it in its form.
    """
    events = documents_in(body)
    if events and json.loads(body) != events[0]:
        verify.verify_events(deployment, body, signature)
    else:
        verify.verify_event(deployment, body, signature)
    return events
