"""Which DEK a reader gets from an object, and its plaintext (SPEC 4.5, 4.6, 9.1). Pure.

The user wrap is opened first, and one that opens to a DEK to which the header does not
commit is `corrupt_object`; the admin wrap serves only where the user wrap does not open.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from keyturn.crypto import (
    BODY_CONTEXT,
    HEADER_BYTES,
    Role,
    SealError,
    Secret,
    admin_kek,
    commits_to,
    unwrap_dek,
    v0_unwrap_dek,
)
from keyturn.errors import (
    CorruptObjectError,
    KeyringRolledBackError,
    NotFoundError,
    NoUsableWrapError,
)
from keyturn.metadata import (
    COBBLESTONE,
    V0_ALGORITHM,
    Envelope,
    Plaintext,
    Tombstone,
    V0Wraps,
    Wraps,
)
from keyturn_workers.keyring import Keyring
from keyturn_workers.objects.operator_keys import OperatorKeys


@dataclass(frozen=True, slots=True)
class ReaderKeys:
    """The keys that a reader holds for one project, and what its keyring allows.

    Whoever cannot read the keyring leaves `plaintext_allowed` and `v0_allowed` off.
    """

    project: str
    user_kek: Secret | None = None
    master_keys: Mapping[str, Secret] = field(default_factory=dict)
    v0_user_kek: Secret | None = None
    v0_admin_kek: Secret | None = None
    plaintext_allowed: bool = False
    v0_allowed: bool = False

    @classmethod
    def of(
        cls,
        keyring: Keyring,
        operator_keys: OperatorKeys,
        envelope: Envelope,
        user_kek: Secret | None,
    ) -> Self:
        """Who holds the operator's keys and a keyring, to read one object.

        `user_kek` is what its user wrap is opened with, but for v0 bodies: such a body commits
        to no key, so both wraps are opened, and one that was not yet swept has its user wrap
        under the KEK of its own generation (SPEC 4.6).
        """
        if isinstance(envelope, Wraps) and envelope.algorithm == V0_ALGORITHM:
            user_kek = keyring.user_keks.get(envelope.generation)
        return cls(
            keyring.project,
            user_kek=user_kek,
            master_keys=operator_keys.master_keys,
            v0_user_kek=keyring.v0_kek,
            v0_admin_kek=operator_keys.v0_admin_kek,
            plaintext_allowed=keyring.plaintext_allowed,
            v0_allowed=keyring.v0_allowed,
        )


@dataclass(frozen=True, slots=True)
class OpenedDek:
    """A DEK, whose wrap gave it (None: a plaintext object has neither), and the body's form."""

    dek: bytes = field(repr=False)
    role: Role
    algorithm: str


def open_dek(
    envelope: Envelope, header: bytes, object_key: str, reader: ReaderKeys
) -> OpenedDek | None:
    """The DEK of an object, or None where it is plaintext and the keyring allows that.

    `header` is the first 56 bytes of the body, or what there is of them.

    Raises:
        NoUsableWrapError: none of the wraps opens under the reader's keys.
        CorruptObjectError: the header does not commit to the DEK, wraps disagree, or
            plaintext stands where it is not allowed.
        NotFoundError: a tombstone stands there.
    """
    match envelope:
        case Plaintext():
            if not reader.plaintext_allowed:
                raise CorruptObjectError("an object without enc-algo, and plaintext is forbidden")
            return None
        case Tombstone():
            raise NotFoundError("deleted")
        case V0Wraps():
            return _open_v0(envelope, reader)
        case Wraps(algorithm=algorithm) if algorithm == COBBLESTONE:
            return _open_v1(envelope, header, object_key, reader)
        case Wraps():
            return _open_v0_body(envelope, object_key, reader)


def check_not_rolled_back(keyring: Keyring, envelope: Envelope, opened: OpenedDek | None) -> None:
    """Make sure that an object which its admin wrap opened is no newer than its keyring.

    The keyring must have been read after the object: only then does a higher generation mean
    anything. The wrap is bound to its label, so that the generation is no lie.

    Raises:
        KeyringRolledBackError: somebody put an old keyring there (SPEC 5.4).
    """
    if opened is None or opened.role != "admin" or not isinstance(envelope, Wraps):
        return
    if envelope.generation > keyring.current.generation:
        raise KeyringRolledBackError(
            f"the object stands at generation {envelope.generation}, "
            f"the keyring at {keyring.current.generation}"
        )


def _open_v1(wraps: Wraps, header: bytes, object_key: str, reader: ReaderKeys) -> OpenedDek:
    role: Role = "user"
    dek = _user(wraps, object_key, reader)
    if dek is None:
        role, dek = "admin", _admin(wraps, object_key, reader)
    if dek is None:
        raise NoUsableWrapError
    if len(header) != HEADER_BYTES or not commits_to(dek, BODY_CONTEXT, header):
        raise CorruptObjectError("the header does not commit to the DEK")
    return OpenedDek(dek, role, wraps.algorithm)


def _open_v0_body(wraps: Wraps, object_key: str, reader: ReaderKeys) -> OpenedDek:
    """A v0 body does not commit to its key: both wraps must open, to the same DEK."""
    user, admin = _user(wraps, object_key, reader), _admin(wraps, object_key, reader)
    if user is None or admin is None:
        raise NoUsableWrapError("an object of the earlier system is opened by both keys together")
    if user != admin:
        raise CorruptObjectError("the wraps hold different DEKs")
    return OpenedDek(user, "user", wraps.algorithm)


def _user(wraps: Wraps, object_key: str, reader: ReaderKeys) -> bytes | None:
    return (
        None
        if reader.user_kek is None
        else _unwrap(wraps, "user", object_key, reader, reader.user_kek)
    )


def _admin(wraps: Wraps, object_key: str, reader: ReaderKeys) -> bytes | None:
    for name in dict.fromkeys((wraps.master_key, *reader.master_keys)):
        if name in reader.master_keys:
            kek = admin_kek(reader.master_keys[name].reveal(), reader.project)
            dek = _unwrap(wraps, "admin", object_key, reader, kek)
            if dek is not None:
                return dek
    return None


def _unwrap(
    wraps: Wraps, role: Role, object_key: str, reader: ReaderKeys, kek: Secret
) -> bytes | None:
    try:
        return unwrap_dek(
            kek,
            role,
            algorithm=wraps.algorithm,
            project=reader.project,
            key=object_key,
            generation=wraps.generation,
            wrap=wraps.user if role == "user" else wraps.admin,
        )
    except SealError:
        return None


def _open_v0(wraps: V0Wraps, reader: ReaderKeys) -> OpenedDek:
    if not reader.v0_allowed:
        raise NoUsableWrapError("wraps of the earlier system, and v0 is forbidden")
    user = _v0_unwrap(reader.v0_user_kek, wraps.user)
    admin = _v0_unwrap(reader.v0_admin_kek, wraps.admin)
    if user is not None and admin is not None and user != admin:
        raise CorruptObjectError("the wraps hold different DEKs")
    if user is not None:
        return OpenedDek(user, "user", "AES-256-GCM")
    if admin is not None:
        return OpenedDek(admin, "admin", "AES-256-GCM")
    raise NoUsableWrapError


def _v0_unwrap(kek: Secret | None, wrap: bytes | None) -> bytes | None:
    if kek is None or wrap is None:
        return None
    try:
        return v0_unwrap_dek(kek, wrap)
    except SealError:
        return None
