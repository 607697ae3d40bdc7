"""Whether an object's wraps and the header of its body agree (SPEC 5.4, 7.1). Pure.

`keyturn_workers.objects.plan_action` decides what must become of the object.
"""

from dataclasses import dataclass, field

from keyturn.crypto import BODY_CONTEXT, HEADER_BYTES, commits_to
from keyturn.errors import CorruptObjectError
from keyturn.metadata import Wraps
from keyturn_workers.keyring import DesiredState, Keyring
from keyturn_workers.master_keys.admin_keks import AdminKeks
from keyturn_workers.objects.unwrap import (
    OpenedWrap,
    is_current,
    open_admin_wrap,
    open_user_wrap,
    past_generations,
    select_dek,
    try_wrap,
)


@dataclass(frozen=True, slots=True)
class Verification:
    """An object whose header commits to the DEK of its wraps.

    `current`: both wraps and their labels match the desired state.
    """

    dek: bytes = field(repr=False)
    current: bool


def verify(
    wraps: Wraps, header: bytes, object_key: str, desired: DesiredState, admin_keks: AdminKeks
) -> Verification:
    """Open both wraps, and compare the object with the desired state.

    `header` is the first 56 bytes of the body.

    Raises:
        NoUsableWrapError: neither wrap opens.
        CorruptObjectError: the wraps hold different DEKs, or the header commits to neither.
        KeyringRolledBackError: the admin wrap opens at a higher generation than the keyring's.
            Meaningful only if the keyring was read after the object.
        KmsUnavailableError: as `verify_upload`.
    """
    admin = open_admin_wrap(wraps, object_key, desired, admin_keks, ())
    user = open_user_wrap(wraps, object_key, desired, ())
    return _verify_opened(wraps, header, admin, user, desired)


def verify_upload(
    wraps: Wraps, header: bytes, object_key: str, keyring: Keyring, admin_keks: AdminKeks
) -> Verification:
    """Verify an object that carries an upload's id, which is not authenticated (SPEC 7.1).

    Stricter than `verify`: the admin wrap must open, and so must the user wrap if the keyring
    still holds the KEK of its generation. Otherwise a bucket writer could pass off another
    object as the stored one.

    Raises:
        CorruptObjectError: a wrap does not verify.
        KeyringRolledBackError: as `verify`.
        UnknownMasterKeyError: this process lacks the keyring's master key.
        KmsUnavailableError: a provider is away, and the admin wrap opens under no other key.
    """
    desired, past = (
        keyring.desired(admin_keks.require(keyring.master_key)),
        past_generations(keyring),
    )
    admin = open_admin_wrap(wraps, object_key, desired, admin_keks, past)
    if admin is None:
        raise CorruptObjectError("the admin wrap does not open")
    kek = keyring.user_keks.get(wraps.generation)
    if kek is not None:
        labeled = try_wrap(wraps, "user", object_key, keyring.project, kek, (wraps.generation,))
        if labeled is None:
            raise CorruptObjectError("the user wrap does not open")
        select_dek(admin, labeled)
    user = open_user_wrap(wraps, object_key, desired, past)
    return _verify_opened(wraps, header, admin, user, desired)


def _verify_opened(
    wraps: Wraps,
    header: bytes,
    admin: OpenedWrap | None,
    user: OpenedWrap | None,
    desired: DesiredState,
) -> Verification:
    dek = select_dek(admin, user)
    check_header(dek, header)
    return Verification(dek, current=is_current(wraps, admin, user, desired))


def check_header(dek: bytes, header: bytes) -> None:
    """Refuse a DEK that the body does not commit to: it must not be wrapped (SPEC 3.1, 8.2).

    Raises:
        CorruptObjectError: the first 56 bytes are cut, or commit to another DEK.
    """
    if len(header) != HEADER_BYTES or not commits_to(dek, BODY_CONTEXT, header):
        raise CorruptObjectError("the header does not commit to the DEK")
