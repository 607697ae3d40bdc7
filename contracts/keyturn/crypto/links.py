"""The token of a link that opens one object without the API key (SPEC 9.3).

It is a MAC under a key derived from the project's user KEK. So any gateway that reads the keyring
can make and check one, nothing is stored, and a rotation ends every link. The MAC covers all that a
link says: deployment, project, object key, expiry, and whether a browser may show the object.
"""

import hmac
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from keyturn.crypto.keys import Kek, Secret
from keyturn.crypto.labels import label

_LINK_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class LinkClaims:
    """What a link says.

    Attributes:
        project: The project's id.
        object_key: The object's key, decoded.
        expires: When it ends, in seconds since 1970.
        inline: Whether a browser may show the object instead of saving it.
    """

    project: str
    object_key: str
    expires: int
    inline: bool


def link_token(kek: Kek, deployment: str, claims: LinkClaims) -> str:
    """Return a link's token: 43 characters of base64url, without padding.

    Args:
        kek: The project's current user KEK.
        deployment: The name of the installation.
        claims: What the link says.

    Raises:
        ValueError: a name holds a zero byte, or cannot be written as UTF-8.
    """
    disposition = "inline" if claims.inline else "attachment"
    message = label(claims.project, claims.object_key, str(claims.expires), disposition)
    mac = hmac.digest(_link_key(kek, deployment).reveal(), message, "sha256")
    return urlsafe_b64encode(mac).rstrip(b"=").decode("ascii")


def is_link_token(token: str, kek: Kek, deployment: str, claims: LinkClaims) -> bool:
    """Whether this is the link's token, in constant time.

    The encoded texts are compared: base64 has several encodings of the same bytes, and only one
    of them is the token.

    Raises:
        ValueError: as `link_token`.
    """
    expected = link_token(kek, deployment, claims)
    return hmac.compare_digest(token.encode("utf-8", "surrogatepass"), expected.encode("ascii"))


def _link_key(kek: Kek, deployment: str) -> Secret:
    expand = HKDFExpand(SHA256(), _LINK_KEY_BYTES, label("keyturn/v1/link", deployment))
    return Secret(expand.derive(kek.reveal()))
