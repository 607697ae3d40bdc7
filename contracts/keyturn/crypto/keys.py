"""Keys: their derivation, and a type that cannot print them (SPEC 2, 5.1).

Every function depends only on its arguments, except `new_api_key` and `new_dek`. A key must never
show: not in a repr, not in an error, not in a pickle.
"""

import hmac
import os
import re
import secrets
import string
from typing import Final, Literal, NoReturn, TypeAlias

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from keyturn.crypto.labels import label

KEK_BYTES: Final = 32
DEK_BYTES: Final = 32
MASTER_KEY_BYTES: Final = 32
CUSTOMER_SECRET_BYTES: Final = 32

_KEK_ID_BYTES: Final = 8
_API_KEY: Final = re.compile(r"[A-Za-z0-9._~+/=-]{32,512}")
_BASE62: Final = string.digits + string.ascii_letters
_API_KEY_CHARACTERS: Final = 43
"""43 characters out of 62 hold 256 random bits, of which SPEC 1 asks for 128."""


class Secret:
    """Bytes that `repr`, `str`, `format` and `pickle` never show; only `reveal` does.

    Equality takes constant time, and a secret is not hashable: the time of a lookup in a set would
    reveal something about it.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """Return the bytes themselves."""
        return self._value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]  # by intent, see the docstring

    def __repr__(self) -> str:
        return "Secret(…)"

    def __copy__(self) -> "Secret":
        return self

    def __deepcopy__(self, memo: object) -> "Secret":
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled")


Kek: TypeAlias = Secret
"""A key-encryption key: 32 bytes."""


def user_kek(api_key: str, project: str, pepper: str = "") -> Kek:
    """Return a project's user KEK, derived from its API key (SPEC 2.1).

    Raises:
        ValueError: the API key is not 32 to 512 characters of ``[A-Za-z0-9._~+/=-]`` (SPEC 1).
    """
    info = label("keyturn/v1/user-kek", project)
    return _kek(check_api_key(api_key).encode("ascii"), _utf8(pepper), info)


def check_api_key(api_key: str) -> str:
    """Return the API key itself if it has the form of SPEC 1.

    Raises:
        ValueError: it is not 32 to 512 characters of ``[A-Za-z0-9._~+/=-]``.
    """
    if not _API_KEY.fullmatch(api_key):
        raise ValueError("an API key is 32 to 512 characters of [A-Za-z0-9._~+/=-]")
    return api_key


def admin_kek_info(project: str) -> bytes:
    """Return the HKDF info of a project's admin KEK (SPEC 2.2)."""
    return label("keyturn/v1/admin-kek", project)


def record_kek_info(project: str) -> bytes:
    """Return the HKDF info of the KEK of Keyturn's own records about a project (SPEC 5.1)."""
    return label("keyturn/v1/record-kek", project)


def master_prk(master_key: bytes) -> Secret:
    """Return the PRK of a master key: HKDF-Extract with an empty salt (SPEC 2.2).

    An HSM or a KMS holds it as an HMAC-SHA256 key: `expand_message` under it is a KEK.

    Raises:
        ValueError: the master key is not 32 bytes long.
    """
    return Secret(hmac.digest(bytes(MASTER_KEY_BYTES), _master(master_key), "sha256"))


def expand_message(info: bytes) -> bytes:
    """Return the message whose HMAC-SHA256 under the PRK is HKDF-Expand to 32 bytes (SPEC 2.2)."""
    return info + b"\x01"


def expand_prk(prk: Secret, info: bytes) -> Kek:
    """Return 32 bytes of HKDF-Expand-SHA256 of a master key's PRK (SPEC 2.2)."""
    return Secret(hmac.digest(prk.reveal(), expand_message(info), "sha256"))


def admin_kek(master_key: bytes, project: str) -> Kek:
    """Return a project's admin KEK, derived from the master key (SPEC 2.2).

    Raises:
        ValueError: the master key is not 32 bytes long.
    """
    return expand_prk(master_prk(master_key), admin_kek_info(project))


def record_kek(master_key: bytes, project: str) -> Kek:
    """Return the KEK of Keyturn's own records about a project (SPEC 5.1).

    Raises:
        ValueError: the master key is not 32 bytes long.
    """
    return expand_prk(master_prk(master_key), record_kek_info(project))


def kek_id(kek: Kek) -> str:
    """Return a KEK's id, 16 hex digits: a hint that authorizes nothing (SPEC 2.3)."""
    expand = HKDFExpand(SHA256(), _KEK_ID_BYTES, b"keyturn/v1/kek-id")
    return expand.derive(kek.reveal()).hex()


def new_customer_secret() -> Secret:
    """Return a fresh customer secret, for one generation of a project (SPEC 2.6)."""
    return Secret(os.urandom(CUSTOMER_SECRET_BYTES))


def customer_secret_id(secret: Secret) -> str:
    """Return a customer secret's id, 16 hex digits: a hint that authorizes nothing (SPEC 2.6)."""
    expand = HKDFExpand(SHA256(), _KEK_ID_BYTES, b"keyturn/v1/customer-secret-id")
    return expand.derive(secret.reveal()).hex()


def composite_kek(
    kek: Kek, secret: Secret, role: Literal["user", "admin"], project: str, secret_id: str
) -> Kek:
    """Return the KEK of a project with a customer key: it needs both of its inputs (SPEC 2.6).

    Args:
        kek: the user KEK or the admin KEK, by `role`.
        secret: the customer secret, 32 bytes.
        role: the owner of the wraps that are made under it.
        project: the project's id.
        secret_id: the id of the customer secret.

    Raises:
        ValueError: the secret is not 32 bytes long.
    """
    if len(secret.reveal()) != CUSTOMER_SECRET_BYTES:
        raise ValueError("a customer secret is 32 bytes long")
    info = label("keyturn/v1/composite-kek", role, project, secret_id)
    return _kek(kek.reveal() + secret.reveal(), b"", info)


def new_api_key() -> str:
    """Return a fresh API key: ``kt_`` and 43 base62 characters, each drawn without bias."""
    return "kt_" + "".join(secrets.choice(_BASE62) for _ in range(_API_KEY_CHARACTERS))


def new_dek() -> bytes:
    """Return a fresh data key, for one attempt to store one object (SPEC 2.4)."""
    return os.urandom(DEK_BYTES)


def _kek(ikm: bytes, salt: bytes, info: bytes) -> Kek:
    """Return 32 bytes of HKDF-SHA256 (RFC 5869; an empty salt is that of its section 2.2)."""
    return Secret(HKDF(SHA256(), KEK_BYTES, salt, info).derive(ikm))


def _master(master_key: bytes) -> bytes:
    if len(master_key) != MASTER_KEY_BYTES:
        raise ValueError("a master key is 32 bytes long")
    return master_key


def _utf8(secret: str) -> bytes:
    try:
        return secret.encode()
    except UnicodeEncodeError:
        raise ValueError("a secret is UTF-8") from None  # its cause quotes the secret
