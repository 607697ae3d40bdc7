"""The client of the HTTP gateway (SPEC 9): reading, and sending, with an API key alone.

| module | what it holds |
| --- | --- |
| `client` | `Client`: open, stat, upload, rotate, rotation |
| `objects` | one object while it is read: its length, and its body as a checked stream |
| `answers` | what an answer's status, headers and problem document mean; pure |
| `sending` | a body on its way to the gateway, watched for progress |
| `transport` | one pool of connections, requests sent once, failures told without secrets |
| `errors` | how it can end, beside the codes of SPEC 12 |

It needs aiohttp (`keyturn[reader]`), imported only when a client is made, and no access to
the bucket or the broker. It must never import `workers`, and opens nothing itself: the
gateway has authenticated what it sends, so what vouches for it on the way here is TLS.
"""

from keyturn.errors import (
    GatewayError,
    GatewayUnavailableError,
    IncompleteBodyError,
    ResponseLostError,
    UnencryptedGatewayWarning,
    UnexpectedResponseError,
)
from keyturn.gateway.client import Client, UploadReceipt
from keyturn.gateway.object_stream import OpenObject
from keyturn.gateway.responses import ObjectInfo

__all__ = [
    "Client",
    "GatewayError",
    "GatewayUnavailableError",
    "IncompleteBodyError",
    "ObjectInfo",
    "OpenObject",
    "ResponseLostError",
    "UnencryptedGatewayWarning",
    "UnexpectedResponseError",
    "UploadReceipt",
]
