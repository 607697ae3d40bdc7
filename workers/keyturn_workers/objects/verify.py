"""Whether an object's wraps and the header of its body agree (SPEC 5.4, 7.1). Pure.

`keyturn_workers.objects.plan_action` decides what must become of the object.
"""

from dataclasses import dataclass, field

from keyturn.crypto import BODY_CONTEXT, HEADER_BYTES, commits_to
from keyturn.errors import CorruptObjectError
from keyturn.metadata import Wraps
from keyturn_workers.keyring import Keyring
from keyturn_workers.master_keys.admin_keks import AdminKeks
from keyturn_workers.objects.unwrap import (
    is_current,
    open_wraps,
    select_dek,
)


@dataclass(frozen=True, slots=True)
class Verification:
    """An object whose header commits to the DEK of its wraps.

    `current`: both wraps and their labels match the desired state.
    """

    dek: bytes = field(repr=False)
    current: bool


def verify_upload(
    wraps: Wraps, header: bytes, object_key: str, keyring: Keyring, admin_keks: AdminKeks
) -> Verification:
    """Verify an object that carries an upload's id, which is not authenticated (SPEC 7.1).

    The admin wrap must open, and so must the user wrap if the keyring still holds the KEK of
    that generation. Otherwise a bucket writer could pass off another object as the stored one.
    `header` is the first 56 bytes of the body.

    Raises:
        CorruptObjectError: a wrap does not verify, or the header commits to another DEK.
        KeyringRolledBackError: the admin wrap opens at a higher generation than the keyring's.
            Meaningful only if the keyring was read after the object.
        UnknownMasterKeyError: this process lacks the keyring's master key.
        KmsUnavailableError: a provider is away, and the admin wrap opens under no other key.
    """
    desired = keyring.desired(admin_keks.require(keyring.master_key))
    opened = open_wraps(wraps, object_key, keyring, desired, admin_keks)
    if opened.admin is None:
        raise CorruptObjectError("the admin wrap does not open")
    dek = select_dek(opened.admin, opened.user)
    if opened.disagree:
        raise CorruptObjectError("the user wrap does not open")
    check_header(dek, header)
    current = is_current(wraps, opened.admin, opened.user, desired)
    return Verification(dek, current=current)


def check_header(dek: bytes, header: bytes) -> None:
    """Refuse a DEK that the body does not commit to: it must not be wrapped (SPEC 3.1, 8.2).

    Raises:
        CorruptObjectError: the first 56 bytes are cut, or commit to another DEK.
    """
    if len(header) != HEADER_BYTES or not commits_to(dek, BODY_CONTEXT, header):
        raise CorruptObjectError("the header does not commit to the DEK")
