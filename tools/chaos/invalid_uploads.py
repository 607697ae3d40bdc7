"""Upload requests that must be rejected, each for one reason (SPEC 6.3, 12)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from keyturn.identifiers import format_time
from keyturn.publisher.requests import SignedRequest
from tools.chaos.load import plaintext
from tools.harness import requests as rq

if TYPE_CHECKING:
    from typing import Any

    from tools.chaos.load import Upload
    from tools.harness.deployment import Deployment

_TYPE = "upload.requested"
_TOO_LARGE_BYTES = 6 * 1024**3
_TOO_OLD = timedelta(days=8)


def invalid_request(deployment: Deployment, seed: int, upload: Upload) -> SignedRequest:
    """The signed request of an upload with a flaw."""
    body = _body(deployment, seed, upload)
    headers = rq.headers(body, deployment.publisher_key)
    if upload.flaw == "forged":
        headers = rq.headers(body, deployment.event_key)
    if upload.flaw == "not permitted":
        headers = rq.headers(body, deployment.narrow_key, publisher="narrow")
    return SignedRequest(upload.upload_id, _TYPE, body, headers)


def _body(deployment: Deployment, seed: int, upload: Upload) -> bytes:
    if upload.flaw == "unreadable":
        return b'{"type": "upload.requested", '
    sealed_for = "another/key" if upload.flaw == "sealed for another key" else upload.key
    made = rq.upload(
        deployment,
        upload.project,
        sealed_for,
        plaintext(seed, upload),
        staged=upload.flaw == "nothing staged",
        upload_id=upload.upload_id,
    )
    return rq.encode({**made.document, **_changed(made.document, upload)})


def _changed(document: dict[str, Any], upload: Upload) -> dict[str, Any]:
    match upload.flaw:
        case "unknown field":
            return {"color": "blue"}
        case "expired":
            return {"requested_at": format_time(datetime.now(UTC) - _TOO_OLD)}
        case "other intake key":
            return {"sealed_key": {**document["sealed_key"], "intake_key": "gone"}}
        case "sealed for another key":
            return {"key": upload.key}
        case "too large":
            return {"body": {"staged": {"size": _TOO_LARGE_BYTES}}}
        case _:
            return {}
