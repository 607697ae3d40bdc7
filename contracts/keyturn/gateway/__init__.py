"""The client of the HTTP gateway (SPEC 9): work with objects with only an API key.

    from keyturn.gateway import Client

    async with Client.connect("https://files.example.com", api_key) as client:
        async with client.open("acme", "reports/q3.pdf") as opened:
            async for piece in opened.chunks():
                ...

| module | holds |
| --- | --- |
| `client` | `Client`: list, open, stat, upload, delete, link, rotate, keys; an open object |
| `listing` | pages of a listing, checked against what was requested; pure |
| `links` | links that open, or upload, one object without the API key; pure |
| `keys` | what a reader needs that opens objects by itself; pure |
| `responses` | the meaning of a response's status, headers and problem document; pure |
| `uploads` | `upload_to`: an upload by a link, without the API key; common parts of uploads |
| `transport` | one pool of connections; sends each request once; errors without secrets |

Exceptions are in `keyturn.errors`: the class of its code for a rejection by the gateway, and
`GatewayError` for everything else.

It needs aiohttp (`pip install 'keyturn[gateway]'`), imported when a client is opened, and no access
to the bucket or the broker. It decrypts nothing: the gateway has authenticated its response, and
TLS protects it in transit. It must never import `keyturn_workers`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyturn.errors import (
        GatewayError,
        GatewayUnavailableError,
        IncompleteBodyError,
        ResponseLostError,
        UnencryptedGatewayWarning,
        UnexpectedResponseError,
        UploadPendingError,
    )
    from keyturn.gateway.client import (
        Client,
        DeleteManyReceipt,
        DeleteReceipt,
        OpenObject,
        RejectedKey,
    )
    from keyturn.gateway.keys import GenerationKeys, ProjectKeys, WrappedSecret
    from keyturn.gateway.links import CiphertextLink, Link, UploadLink
    from keyturn.gateway.listing import ListedObject, ListedPrefix
    from keyturn.gateway.responses import ObjectInfo
    from keyturn.gateway.uploads import UploadReceipt, upload_to
else:
    from keyturn.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        "keyturn.errors",
        "keyturn.gateway.client",
        "keyturn.gateway.keys",
        "keyturn.gateway.links",
        "keyturn.gateway.listing",
        "keyturn.gateway.responses",
        "keyturn.gateway.uploads",
    )

__all__ = [
    "CiphertextLink",
    "Client",
    "DeleteManyReceipt",
    "DeleteReceipt",
    "GatewayError",
    "GatewayUnavailableError",
    "GenerationKeys",
    "IncompleteBodyError",
    "Link",
    "ListedObject",
    "ListedPrefix",
    "ObjectInfo",
    "OpenObject",
    "ProjectKeys",
    "RejectedKey",
    "ResponseLostError",
    "UnencryptedGatewayWarning",
    "UnexpectedResponseError",
    "UploadLink",
    "UploadPendingError",
    "UploadReceipt",
    "WrappedSecret",
    "upload_to",
]
