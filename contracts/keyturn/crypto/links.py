"""The token of a link that opens one object without the API key (SPEC 9.3).

It is a MAC under a key derived from the project's user KEK. So any gateway that reads the keyring
can make and check one, nothing is stored, and a rotation ends every link. The MAC covers all claims
of a link. Links that read an object and links that upload it have separate MAC keys, so that
neither can be turned into the other.
"""

import hmac
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from typing import ClassVar, Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from keyturn.crypto.keys import Kek, Secret
from keyturn.crypto.labels import label

_LINK_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class LinkClaims:
    """The claims of a link that reads an object.

    Attributes:
        project: The project's id.
        object_key: The object's key, decoded.
        expires: The end of the link, in seconds since 1970.
        inline: True if a browser may show the object instead of saving it.
    """

    purpose: ClassVar[str] = "keyturn/v1/link"
    project: str
    object_key: str
    expires: int
    inline: bool

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms that the MAC covers after the expiry."""
        return ("inline" if self.inline else "attachment",)


@dataclass(frozen=True, slots=True)
class UploadLinkClaims:
    """The claims of a link that uploads an object.

    Attributes:
        project: The project's id.
        object_key: The object's key, decoded.
        expires: The end of the link, in seconds since 1970.
        max_bytes: The largest body.
        content_type: The body's only content type; None for any.
    """

    purpose: ClassVar[str] = "keyturn/v1/upload-link"
    project: str
    object_key: str
    expires: int
    max_bytes: int
    content_type: str | None

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms that the MAC covers after the expiry."""
        return str(self.max_bytes), self.content_type or ""


def link_token(kek: Kek, deployment: str, claims: LinkClaims | UploadLinkClaims) -> str:
    """Return a link's token: 43 characters of base64url, without padding.

    Args:
        kek: The project's current user KEK.
        deployment: The name of the installation.
        claims: The claims of the link.

    Raises:
        ValueError: a name has a zero byte, or cannot be written as UTF-8.
    """
    message = label(claims.project, claims.object_key, str(claims.expires), *claims.terms)
    key = _link_key(kek, claims.purpose, deployment)
    mac = hmac.digest(key.reveal(), message, "sha256")
    return urlsafe_b64encode(mac).rstrip(b"=").decode("ascii")


def is_link_token(
    token: str, kek: Kek, deployment: str, claims: LinkClaims | UploadLinkClaims
) -> bool:
    """Return whether this is the link's token, in constant time.

    The encoded texts are compared: base64 has several encodings of the same bytes, and only one of
    them is the token.

    Raises:
        ValueError: as `link_token`.
    """
    expected = link_token(kek, deployment, claims)
    return hmac.compare_digest(token.encode("utf-8", "surrogatepass"), expected.encode("ascii"))


def _link_key(kek: Kek, purpose: str, deployment: str) -> Secret:
    expand = HKDFExpand(SHA256(), _LINK_KEY_BYTES, label(purpose, deployment))
    return Secret(expand.derive(kek.reveal()))
