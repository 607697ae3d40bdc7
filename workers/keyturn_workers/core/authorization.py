"""Authorize requests: the checks of SPEC 6.3 in their order. Pure; no I/O.

Signature, routing, form, permission, age: the first check that fails decides the code. Unsigned
data, such as a routing key, must not influence any published event: a request whose type does not
belong to its queue was moved by an attacker, and is handled like a bad signature.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from keyturn.errors import (
    BadSignatureError,
    CodedError,
    MalformedRequestError,
    NotPermittedError,
    RequestExpiredError,
    SignatureError,
)
from keyturn.messages.codec import claimed_type, identity, parse_request, rejection
from keyturn.messages.events import Rejected
from keyturn.messages.requests import (
    EnrollRequested,
    Request,
    RotationRequested,
    SourceBody,
    UploadRequested,
)
from keyturn.request_origin import RequestOrigin
from keyturn.topology import PUBLISHER_HEADER, REQUESTS, SIGNATURE_HEADER
from keyturn_workers.core.grants import CUSTOMER_KEY_RIGHT, Grant

MAX_AHEAD: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that authorization needs."""

    deployment: str
    publishers: Mapping[str, Grant]
    max_age: timedelta


@dataclass(frozen=True, slots=True)
class Signer:
    """The publisher that signed a request, and its grant."""

    name: str
    grant: Grant


def verify(body: bytes, headers: Mapping[str, Any], rules: Rules) -> Signer:
    """The publisher that signed these bytes.

    Raises:
        BadSignatureError: unknown publisher, or none of its keys signed them for this deployment.
            Nothing in the message can be trusted.
    """
    name, signature = headers.get(PUBLISHER_HEADER), headers.get(SIGNATURE_HEADER)
    grant = rules.publishers.get(name) if isinstance(name, str) else None
    if not isinstance(name, str) or grant is None:
        raise BadSignatureError("unknown publisher")
    if not isinstance(signature, str):
        raise BadSignatureError("not signed")
    for key in grant.keys:
        try:
            key.verify_request(rules.deployment, name, body, signature)
        except SignatureError:
            continue
        return Signer(name, grant)
    raise BadSignatureError("no key of this publisher signed these bytes for this deployment")


@dataclass(frozen=True, slots=True)
class Arrival:
    """The queue where a request arrived, the queue's message types, and the routing key."""

    queue: str
    served: tuple[str, ...]
    routing_key: str

    def accepts(self, message_type: str) -> bool:
        """Return True if a request of this type belongs here.

        Retries and replays return under the queue's own name as routing key.
        """
        return message_type in self.served and self.routing_key in (message_type, self.queue)


def authorize(body: bytes, signer: Signer, arrival: Arrival) -> Request:
    """Parse the request in these bytes, if its publisher may send it. Its age is not checked.

    Raises:
        BadSignatureError: its type does not belong to this queue or routing key.
        MalformedRequestError, NotPermittedError
    """
    try:
        request = parse_request(body)
    except MalformedRequestError:
        claimed = claimed_type(body)
        if claimed in REQUESTS:
            _check_routing(claimed, arrival)
        raise
    _check_routing(request.type, arrival)
    if not signer.grant.allows(request.type, request.project):
        raise NotPermittedError(f"{signer.name} may not send {request.type} for this project")
    if (
        isinstance(request, EnrollRequested | RotationRequested)
        and request.customer_key is not None
        and not signer.grant.allows(CUSTOMER_KEY_RIGHT, request.project)
    ):
        raise NotPermittedError(
            f"publisher {signer.name} may not name a customer key: its grant does not list "
            f'"{CUSTOMER_KEY_RIGHT}" in "may"'
        )
    if isinstance(request, UploadRequested) and isinstance(request.body, SourceBody):
        source = request.body.source.name
        if source not in signer.grant.sources:
            raise NotPermittedError(
                f"publisher {signer.name} may not request objects of source {source}: its grant "
                'does not list it in "sources"'
            )
    return request


def _check_routing(message_type: str, arrival: Arrival) -> None:
    if not arrival.accepts(message_type):
        raise BadSignatureError(f"{message_type} was moved to another queue or routing key")


def check_age(request: Request, max_age: timedelta, now: datetime) -> None:
    """Raise `RequestExpiredError` if the request is too old, or from the future."""
    age = now - request.requested_at_instant
    if age > max_age:
        raise RequestExpiredError("requested_at is too long ago")
    if age < -MAX_AHEAD:
        raise RequestExpiredError("requested_at lies in the future")


def rejection_of(body: bytes, signer: Signer, error: CodedError, at: str) -> Rejected | None:
    """The event for a refused request; None if its type or id cannot be read.

    The event names the project only if the publisher may send this type for it: otherwise any
    publisher could have a refusal signed for a project that is not its own (SPEC 6.3).
    """
    claimed = identity(body)
    if claimed is None:
        return None
    message_type, claimed_id, project = claimed
    if project is None or not signer.grant.allows(message_type, project):
        project = None
    origin = RequestOrigin.of(signer.name, body)
    return rejection(message_type, claimed_id, project, error, at, origin)
