"""Open objects without the gateway in the data path (SPEC 4, 9.3, 15.2).

    from keyturn.gateway import Client
    from keyturn.open import open_object

    async with Client.connect("https://files.example.com", api_key) as client:
        link = await client.ciphertext_link("acme", "video.mp4")
    async with open_object(
        link, project="acme", object_key="video.mp4", api_key=api_key, pepper=pepper
    ) as opened:
        async for piece in opened.chunks():
            ...

A ciphertext link is a presigned URL of the stored bytes, with the object's metadata. The reader
derives the project's user KEK from the API key and the pepper, unwraps the object's DEK and
decrypts the bytes itself. It needs no operator's key, no keyring and no bucket credentials. Reading
a whole object takes one request to the storage.

If the project has a customer key, the reader also needs the customer secret. It decrypts that with
credentials of its own for the customer's KMS, from what `keyturn.gateway.Client.keys` returns.

| module | holds |
| --- | --- |
| `reader` | `Reader` and `open_object` |
| `stored_body` | the stored bytes by their presigned URL, over several requests if needed |
| `plaintext` | one object while it is read: the plaintext of stored bytes, whole or a range |
| `unwrap` | the DEK that an API key opens; pure |

Only Cobblestone-256 objects are opened here. The gateway also serves plaintext objects.
Exceptions are in `keyturn.errors`. It needs aiohttp (`pip install 'keyturn[gateway]'`). It must
never import `keyturn_workers`, and never put the presigned URL, which is a secret, into an error or
a repr.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyturn.errors import IncompleteBodyError, LinkExpiredError
    from keyturn.open.plaintext import DecryptedObject
    from keyturn.open.reader import Reader, open_object
else:
    from keyturn.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        "keyturn.errors",
        "keyturn.open.plaintext",
        "keyturn.open.reader",
    )

__all__ = [
    "DecryptedObject",
    "IncompleteBodyError",
    "LinkExpiredError",
    "Reader",
    "open_object",
]
