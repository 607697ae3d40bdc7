"""Uploads through the gateway, with an API key or through a link (SPEC 9.3, 9.4).

A body is sent once: the gateway gives each request a new id. It must never log or raise a link.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import SecretStr

from keyturn.errors import MalformedRequestError, UnexpectedResponseError, UploadPendingError
from keyturn.gateway.links import UploadLink, is_upload_link, link_parameter
from keyturn.gateway.transport import CONNECT_TIMEOUT_S, IDLE_TIMEOUT_S, Transport, Write
from keyturn.identifiers import is_uuid
from keyturn.metadata import check_content_type
from keyturn.publisher.staging import Body

UPLOAD_WAIT_S: Final = 50
"""Less than the 60 seconds after which common proxies end a request without a response."""
_CREATED, _ACCEPTED = 201, 202
UPLOADED: Final = (_CREATED, _ACCEPTED)
"""The statuses of an upload that the gateway has accepted."""


@dataclass(frozen=True, slots=True)
class UploadReceipt:
    """An upload that the gateway has accepted.

    Attributes:
        upload_id: Its id, as in its event.
        stored: True if the object is stored. If the call did not wait, that is unknown: the object
            will be stored, or an event has the reason.
    """

    upload_id: str
    stored: bool


async def upload_to(
    link: UploadLink | str,
    body: Body,
    *,
    content_type: str | None = None,
    wait: bool = True,
    wait_s: int = UPLOAD_WAIT_S,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
    tls: ssl.SSLContext | None = None,
) -> UploadReceipt:
    """Upload one object through an upload link, without an API key; return once it is stored.

    Args:
        link: As `Client.upload_link` returned it, or its URL.
        body: Bytes, a path, a binary file, or an async iterable of bytes of any length.
        content_type: As in HTTP; the link's own by default.
        wait: True to wait until the object is stored, False to return once the request is on its
            queue.
        wait_s: The maximum wait in seconds, 1 or more. The gateway may grant less (60 by default).
        connect_timeout_s: Seconds to make the connection.
        idle_timeout_s: Seconds without progress after which the request fails.
        tls: The authorities that verify the gateway's certificate; the system's by default.

    Raises:
        MalformedRequestError: this is not an upload link, or the content type is not allowed.
        UnauthorizedError: the link expired, was changed, or was made before a rotation.
        BodyTooLargeError: the body is larger than the link allows.
        UnsupportedMediaTypeError: the link allows another content type.
        TooManyRequestsError: an upload by this link has no outcome yet, or the project's share is
            used up.
        AlreadyExistsError: the key holds an object: the link is used up.
        CodedError, GatewayError: as `Client.upload`.
    """
    url = SecretStr(link.url if isinstance(link, UploadLink) else link)
    del link  # reporters of errors show the variables of each frame
    if not is_upload_link(url.get_secret_value()):
        raise MalformedRequestError("this is not an upload link")
    content_type = content_type or link_parameter(url.get_secret_value(), "content_type")
    write = Write(
        "PUT",
        url.get_secret_value(),
        UPLOADED,
        body,
        {"Content-Type": check_content_type(content_type)} if content_type else {},
        wait_s=wait_s if wait else None,
        secrets=(SecretStr(link_parameter(url.get_secret_value(), "token")),),
    )
    async with Transport.open(
        None,
        connect_timeout_s=connect_timeout_s,
        idle_timeout_s=idle_timeout_s,
        max_connections=1,
        tls=tls,
    ) as transport:
        return receipt_of(*await transport.send(write), wait=wait)


def receipt_of(status: int, fields: Mapping[str, Any], *, wait: bool) -> UploadReceipt:
    """Return the receipt in a response to an upload.

    Raises:
        UploadPendingError: the outcome is not known, although the caller waited for it.
        UnexpectedResponseError: the response has no id.
    """
    upload_id, stored = required_id(status, fields, "upload_id"), status == _CREATED
    if wait and not stored:
        raise UploadPendingError(upload_id)
    return UploadReceipt(upload_id, stored)


def required_id(status: int, fields: Mapping[str, Any], name: str) -> str:
    """Return the id of this name in a response.

    Raises:
        UnexpectedResponseError: there is none.
    """
    value = fields.get(name)
    if not isinstance(value, str) or not is_uuid(value):
        raise UnexpectedResponseError(f"the response has no {name}", status=status)
    return value
