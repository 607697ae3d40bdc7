"""Choose the DEK that a reader gets from an object (SPEC 4.5, 9.1). Pure.

The user wrap comes first: if the header does not commit to its DEK, the object is
`corrupt_object`. The admin wrap is used only if the user wrap does not open, and the reader's
keyring does not show that it should.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from keyturn.crypto.keys import Secret
from keyturn.crypto.wraps import Role
from keyturn.errors import (
    CorruptObjectError,
    KeyringRolledBackError,
    NotFoundError,
    NoUsableWrapError,
    WrapsDisagreeError,
)
from keyturn.metadata import Envelope, Plaintext, Tombstone, Wraps
from keyturn_workers.core.admin_keks import AdminKeks
from keyturn_workers.core.keyring import Keyring
from keyturn_workers.core.wraps import OpenedWrap, check_header, try_wrap


@dataclass(frozen=True, slots=True)
class ReaderKeys:
    """A reader's keys for one project, and its keyring's permission.

    A reader that cannot read the keyring leaves `plaintext_allowed` off, and knows only `user_kek`.
    `user_keks` are the keyring's, by generation.
    """

    project: str
    user_kek: Secret | None = None
    user_keks: Mapping[int, Secret] = field(default_factory=dict)
    admin_keks: AdminKeks = field(default_factory=lambda: AdminKeks(""))
    plaintext_allowed: bool = False

    @classmethod
    def of(cls, keyring: Keyring, admin_keks: AdminKeks, user_kek: Secret | None) -> Self:
        """The keys of a reader with the operator's keys and a keyring.

        `user_kek` opens the user wrap; without it, the admin wrap opens.
        """
        admin_keks.secrets.check_keys(keyring.customer_keys)
        return cls(
            keyring.project,
            user_kek=user_kek,
            user_keks=keyring.user_keks,
            admin_keks=admin_keks,
            plaintext_allowed=keyring.plaintext_allowed,
        )


@dataclass(frozen=True, slots=True)
class OpenedDek:
    """A DEK, and the wrap that it came from."""

    dek: bytes = field(repr=False)
    role: Role


def open_dek(
    envelope: Envelope, header: bytes, object_key: str, reader: ReaderKeys
) -> OpenedDek | None:
    """The DEK of an object; None if it is plaintext and the keyring allows that.

    `header` is the first 56 bytes of the body, or fewer if the body is shorter.

    Raises:
        NoUsableWrapError: no wrap opens under the reader's keys.
        CorruptObjectError: the header does not commit to the DEK, or the object is plaintext,
            which is not allowed.
        WrapsDisagreeError: the two wraps were made under different keyrings.
        NotFoundError: the object is a tombstone.
        KmsUnavailableError: no wrap opens, and a master key is unreachable.
        SecretNeededError, CustomerKeyRefusedError, CustomerKeyUnavailableError: likewise, of a
            customer key.
    """
    match envelope:
        case Plaintext():
            if not reader.plaintext_allowed:
                raise CorruptObjectError("an object without enc-algo, and plaintext is forbidden")
            return None
        case Tombstone():
            raise NotFoundError("deleted")
        case Wraps():
            return _open_wrapped(envelope, header, object_key, reader)


def check_not_rolled_back(keyring: Keyring, envelope: Envelope, opened: OpenedDek | None) -> None:
    """Refuse an object that was opened by its admin wrap and is newer than its keyring.

    A higher generation is meaningful only if the keyring was read after the object. The wrap is
    bound to its label, so the generation cannot be forged.

    Raises:
        KeyringRolledBackError: the keyring is older than the object (SPEC 5.4).
    """
    if opened is None or opened.role != "admin" or not isinstance(envelope, Wraps):
        return
    if envelope.generation > keyring.current.generation:
        raise KeyringRolledBackError(
            f"the object is at generation {envelope.generation}, "
            f"the keyring at {keyring.current.generation}"
        )


def _open_wrapped(wraps: Wraps, header: bytes, object_key: str, reader: ReaderKeys) -> OpenedDek:
    role: Role = "user"
    dek = _open_user_wrap(wraps, object_key, reader)
    if dek is None:
        role, dek = "admin", _open_admin_wrap(wraps, object_key, reader)
    if dek is None:
        raise NoUsableWrapError
    check_header(dek, header)
    if role == "admin":
        _check_user_wrap(wraps, object_key, reader, dek)
    return OpenedDek(dek, role)


def _check_user_wrap(wraps: Wraps, object_key: str, reader: ReaderKeys, dek: bytes) -> None:
    """Apply the rule of `wraps.open_wraps` to an admin wrap that opened.

    Raises:
        WrapsDisagreeError: the keyring shows that the user wrap should hold this DEK.
    """
    kek = reader.user_keks.get(wraps.generation)
    if kek is None:
        return
    user = _try(wraps, "user", object_key, kek, reader)
    if user is None or user.dek != dek:
        raise WrapsDisagreeError("the wraps of this object come from different keyrings")


def _open_user_wrap(wraps: Wraps, object_key: str, reader: ReaderKeys) -> bytes | None:
    if reader.user_kek is None:
        return None
    opened = _try(wraps, "user", object_key, reader.user_kek, reader)
    return None if opened is None else opened.dek


def _open_admin_wrap(wraps: Wraps, object_key: str, reader: ReaderKeys) -> bytes | None:
    for _, kek in reader.admin_keks.in_order(first=wraps.master_key):
        opened = _try(wraps, "admin", object_key, kek, reader)
        if opened is not None:
            return opened.dek
    reader.admin_keks.check_complete(wraps.generation)
    return None


def _try(
    wraps: Wraps, role: Role, object_key: str, kek: Secret, reader: ReaderKeys
) -> OpenedWrap | None:
    at, secrets = (wraps.generation,), reader.admin_keks.secrets
    return try_wrap(wraps, role, object_key, reader.project, kek, at, secrets)
