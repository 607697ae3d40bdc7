"""The client of the HTTP gateway (SPEC 9): work with objects with only an API key.

    from keyturn.gateway import Client

    async with Client.connect("https://files.example.com", api_key) as client:
        async with client.open("acme", "reports/q3.pdf") as opened:
            async for piece in opened.chunks():
                ...

| module | holds |
| --- | --- |
| `client` | `Client`: list, open, stat, upload, delete, link, rotate, rotation; an open object |
| `listing` | pages of a listing, checked against what was requested; pure |
| `links` | links that open one object without the API key; pure |
| `responses` | what a response's status, headers and problem document mean; pure |
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
    UploadPendingError,
)
from keyturn.gateway.client import Client, DeleteReceipt, OpenObject, UploadReceipt
from keyturn.gateway.links import CiphertextLink, Link
from keyturn.gateway.listing import ListedObject, ListedPrefix
from keyturn.gateway.responses import ObjectInfo

__all__ = [
    "CiphertextLink",
    "Client",
    "DeleteReceipt",
    "GatewayError",
    "GatewayUnavailableError",
    "IncompleteBodyError",
    "Link",
    "ListedObject",
    "ListedPrefix",
    "ObjectInfo",
    "OpenObject",
    "ResponseLostError",
    "UnencryptedGatewayWarning",
    "UnexpectedResponseError",
    "UploadPendingError",
    "UploadReceipt",
]
