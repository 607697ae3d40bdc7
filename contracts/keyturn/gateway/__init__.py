"""The client of the HTTP gateway (SPEC 9): read and send objects with only an API key.

    from keyturn.gateway import Client

    async with Client.connect("https://files.example.com", api_key) as client:
        async with client.open("acme", "reports/q3.pdf") as opened:
            async for piece in opened.chunks():
                ...

| module | holds |
| --- | --- |
| `client` | `Client`: open, stat, upload, rotate, rotation |
| `object_stream` | one object while it is read: its length, and its body as a checked stream |
| `responses` | what a response's status, headers and problem document mean; pure |
| `request_body` | a body on its way to the gateway, watched for progress |
| `transport` | one pool of connections; sends each request once; errors without secrets |

Exceptions are in `keyturn.errors`: the class of its code for what the gateway refuses, and
`GatewayError` for everything else.

It needs aiohttp (`pip install 'keyturn[gateway]'`), imported when a client is opened, and no
access to the bucket or the broker. It decrypts nothing: the gateway has authenticated what it
sends, and TLS protects it on the way here. It must never import `keyturn_workers`.
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
