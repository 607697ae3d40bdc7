"""Make, open and verify the two wraps of a DEK (SPEC 4.3, 7.1, 8.2). Pure.

Labels are hints, never proof. A wrap is tried at the generations of the desired state and of its
label, then at every generation that the project ever had, so that a wrong label makes no object
unreadable. Only a wrap that opened counts, also in the report that precedes dropping a master key:
if a label named a new master key over a wrap under the old one, trusting it would drop the old key
and lose the object.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from keyturn import metadata as object_metadata
from keyturn.crypto.base64 import to_base64
from keyturn.crypto.cobblestone import HEADER_BYTES, commits_to
from keyturn.crypto.keys import Secret
from keyturn.crypto.wraps import (
    BODY_CONTEXT,
    Role,
    open_tombstone,
    unwrap_dek,
    wrap_dek,
)
from keyturn.errors import CorruptObjectError, KeyringRolledBackError, NoUsableWrapError, SealError
from keyturn.metadata import COBBLESTONE, DELETED, Plaintext, Tombstone, Wraps
from keyturn_workers.core.admin_keks import AdminKeks
from keyturn_workers.core.customer_keys import NO_SECRETS, CustomerSecrets
from keyturn_workers.core.keyring import DesiredState, Keyring


def wrap(
    desired: DesiredState, object_key: str, dek: bytes, secrets: CustomerSecrets = NO_SECRETS
) -> Wraps:
    """Wrap a 32-byte DEK under both KEKs, bound to algorithm, project, key and generation.

    Raises:
        SecretNeededError: the desired state's customer secret was not asked for yet.
        CustomerKeyRefusedError, CustomerKeyUnavailableError: it was not given.
    """
    user = _wrap(desired, "user", desired.user_kek, object_key, dek, secrets)
    admin = _wrap(desired, "admin", desired.admin_kek, object_key, dek, secrets)
    return Wraps(
        COBBLESTONE,
        user,
        admin,
        desired.generation,
        desired.kek_id,
        desired.master_key,
        desired.secret_id,
    )


def _wrap(
    desired: DesiredState,
    role: Role,
    plain: Secret,
    object_key: str,
    dek: bytes,
    secrets: CustomerSecrets,
) -> bytes:
    secrets.require(desired.generation)
    kek = secrets.kek_at(desired.generation, role, desired.project, plain)
    customer_key = secrets.keys.get(desired.generation)
    if kek is None or desired.secret_id != (customer_key and customer_key.secret_id):
        # A wrap without the secret would open without the customer.
        raise ValueError("these are not the customer secrets of the desired state")
    return wrap_dek(
        kek,
        role,
        algorithm=COBBLESTONE,
        project=desired.project,
        object_key=object_key,
        generation=desired.generation,
        dek=dek,
    )


def build_object_metadata(
    wraps: Wraps,
    *,
    upload_id: str | None,
    caller_wire: Mapping[str, str],
    tag: str | None = None,
    stored_at: datetime | None = None,
) -> dict[str, str]:
    """All metadata of an object, as on the wire.

    `stored_at` is informational: it is left out if the metadata would be too large for the
    storage (SPEC 4.3). For the other arguments see `keyturn.metadata.build`.
    """
    encryption = object_metadata.build(wraps, upload_id=upload_id, tag=tag, stored_at=stored_at)
    metadata = {**caller_wire, **encryption}
    if object_metadata.size_bytes(metadata) > object_metadata.METADATA_MAX_BYTES:
        metadata.pop(object_metadata.STORED_AT, None)
    return metadata


def build_tombstone_metadata(sealed: bytes) -> dict[str, str]:
    """All metadata of a tombstone, around the bytes of `seal_tombstone` (SPEC 8.7)."""
    return {object_metadata.ALGO: DELETED, object_metadata.DEK_ADMIN: to_base64(sealed)}


@dataclass(frozen=True, slots=True)
class OpenedWrap:
    """A DEK, and where its wrap opened; `master_key` is empty for a user wrap."""

    dek: bytes = field(repr=False)
    generation: int
    master_key: str = ""


@dataclass(frozen=True, slots=True)
class OpenedWraps:
    """Both wraps of an object; None for a wrap that does not open.

    `disagree`: the keyring has the KEK of the admin wrap's generation, and the user wrap does
    not hold the same DEK under it. Even so, `user` may be set, under the current KEK.
    """

    admin: OpenedWrap | None
    user: OpenedWrap | None
    disagree: bool


def past_generations(keyring: Keyring) -> Sequence[int]:
    """Every earlier generation of a project, newest first."""
    return [entry.generation for entry in reversed(keyring.history)]


def open_wraps(
    wraps: Wraps, object_key: str, keyring: Keyring, desired: DesiredState, admin_keks: AdminKeks
) -> OpenedWraps:
    """Open both wraps, and compare them (SPEC 8.2).

    Both are always written together, under one keyring. If this keyring's KEK for the generation
    is not the user wrap's, an old keyring was restored and rotated again, or an attacker changed
    the object: the admin wrap must not vouch for it.
    """
    past, secrets = past_generations(keyring), admin_keks.secrets
    secrets.check_keys(keyring.customer_keys)
    admin = open_admin_wrap(wraps, object_key, desired, admin_keks, past)
    if admin is None:
        user = open_user_wrap(wraps, object_key, desired, past, secrets)
        return OpenedWraps(None, user, disagree=False)
    # None once a clean sweep cleared it: then no keyring can check the user wrap.
    kek = keyring.user_keks.get(admin.generation)
    if kek is not None:
        at = (admin.generation,)
        user = try_wrap(wraps, "user", object_key, keyring.project, kek, at, secrets)
        if user is not None and user.dek == admin.dek:
            return OpenedWraps(admin, user, disagree=False)
    # A user wrap at a generation that neither the label nor the admin wrap names serves no
    # reader: do not search a long history for it, for each object.
    user = open_user_wrap(wraps, object_key, desired, (admin.generation,), secrets)
    return OpenedWraps(admin, user, disagree=kek is not None)


def open_admin_wrap(
    wraps: Wraps,
    object_key: str,
    desired: DesiredState,
    admin_keks: AdminKeks,
    past: Sequence[int],
) -> OpenedWrap | None:
    """Open the admin wrap under the desired master key, the label's, or any other available one.

    Raises:
        KeyringRolledBackError: it opens at a higher generation than the keyring's. This is
            meaningful only if the keyring was read after the object.
        KmsUnavailableError: it opens under no available key, and a provider is unreachable.
        SecretNeededError, CustomerKeyRefusedError, CustomerKeyUnavailableError: likewise, of a
            customer key.
    """
    opened = _open_admin_wrap(wraps, object_key, desired, admin_keks, past)
    if opened is None:
        admin_keks.check_complete(wraps.generation)
    if opened is not None and opened.generation > desired.generation:
        raise KeyringRolledBackError(
            f"an object is at generation {opened.generation}, the keyring at {desired.generation}"
        )
    return opened


def _open_admin_wrap(
    wraps: Wraps,
    object_key: str,
    desired: DesiredState,
    admin_keks: AdminKeks,
    past: Sequence[int],
) -> OpenedWrap | None:
    # Try every key at the likely generations before any key at past ones: an object that is
    # only one rotation behind must not cost one attempt per earlier rotation.
    for generations in ((desired.generation, wraps.generation), past):
        for master_key, kek in _admin_keks(wraps, desired, admin_keks):
            opened = try_wrap(
                wraps, "admin", object_key, desired.project, kek, generations, admin_keks.secrets
            )
            if opened is not None:
                return OpenedWrap(opened.dek, opened.generation, master_key)
    return None


def _admin_keks(
    wraps: Wraps, desired: DesiredState, admin_keks: AdminKeks
) -> Iterator[tuple[str, Secret]]:
    yield desired.master_key, desired.admin_kek
    for master_key, kek in admin_keks.in_order(first=wraps.master_key):
        if master_key != desired.master_key:
            yield master_key, kek


def open_user_wrap(
    wraps: Wraps,
    object_key: str,
    desired: DesiredState,
    past: Sequence[int],
    secrets: CustomerSecrets,
) -> OpenedWrap | None:
    """Open the user wrap under the desired KEK only: earlier ones may have leaked (SPEC 8.2)."""
    generations = (desired.generation, wraps.generation, *past)
    kek = desired.user_kek
    return try_wrap(wraps, "user", object_key, desired.project, kek, generations, secrets)


def open_user_wrap_with_earlier_kek(
    wraps: Wraps, object_key: str, keyring: Keyring, secrets: CustomerSecrets
) -> OpenedWrap | None:
    """Open the user wrap under any earlier KEK still in the keyring; for repairs only."""
    past = past_generations(keyring)
    for entry in reversed(keyring.history):
        if entry.kek is None:
            continue
        generations = (entry.generation, wraps.generation, *past)
        opened = try_wrap(
            wraps, "user", object_key, keyring.project, entry.kek, generations, secrets
        )
        if opened is not None:
            return opened
    return None


def try_wrap(
    wraps: Wraps,
    role: Role,
    object_key: str,
    project: str,
    kek: Secret,
    generations: Sequence[int],
    secrets: CustomerSecrets,
) -> OpenedWrap | None:
    """Open one of the two wraps under one KEK, at the first matching generation.

    Where a generation has a customer key, the KEK is the composite one. Without its secret the wrap
    is not tried there.
    """
    for generation in dict.fromkeys(generations):
        kek_there = secrets.kek_at(generation, role, project, kek)
        if kek_there is None:
            continue
        try:
            dek = unwrap_dek(
                kek_there,
                role,
                algorithm=wraps.algorithm,
                project=project,
                object_key=object_key,
                generation=generation,
                wrap=wraps.user if role == "user" else wraps.admin,
            )
        except SealError:
            continue
        return OpenedWrap(dek, generation)
    return None


def try_tombstone(kek: Secret, project: str, object_key: str, sealed: bytes) -> str | None:
    """The time of a tombstone's delete; None if it does not open under this KEK."""
    try:
        return open_tombstone(kek, project, object_key, sealed)
    except SealError:
        return None


def select_dek(admin: OpenedWrap | None, user: OpenedWrap | None) -> bytes:
    """The one DEK in the opened wraps.

    Raises:
        NoUsableWrapError: neither wrap opened.
        CorruptObjectError: both opened, to different DEKs.
    """
    if admin is not None and user is not None and admin.dek != user.dek:
        raise CorruptObjectError("the wraps hold different DEKs")
    opened = admin or user
    if opened is None:
        raise NoUsableWrapError
    return opened.dek


def is_current(
    wraps: Wraps, admin: OpenedWrap | None, user: OpenedWrap | None, desired: DesiredState
) -> bool:
    """Return True if both wraps, their labels and names match the desired state."""
    if admin is None or user is None or wraps.unknown_names:
        return False
    opened = (admin.generation, user.generation, admin.master_key)
    labels = (wraps.generation, wraps.kek_id, wraps.master_key, wraps.secret_id)
    return opened == (desired.generation, desired.generation, desired.master_key) and labels == (
        desired.generation,
        desired.kek_id,
        desired.master_key,
        desired.secret_id,
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
    """Verify an object that has an upload's id, which is not authenticated (SPEC 7.1).

    The admin wrap must open, and so must the user wrap if the keyring still has the KEK of that
    generation. Otherwise a bucket writer could pass off another object as the stored one.
    `header` is the first 56 bytes of the body.

    Raises:
        CorruptObjectError: a wrap does not verify, or the header commits to another DEK.
        KeyringRolledBackError: the admin wrap opens at a higher generation than the keyring's.
            Meaningful only if the keyring was read after the object.
        UnknownMasterKeyError: this process lacks the keyring's master key.
        KmsUnavailableError: a provider is unreachable, and no other key opens the admin wrap.
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
    """Refuse a DEK to which the body does not commit: it must not be wrapped (SPEC 3.1, 8.2).

    Raises:
        CorruptObjectError: the first 56 bytes are cut short, or commit to another DEK.
    """
    if len(header) != HEADER_BYTES or not commits_to(dek, BODY_CONTEXT, header):
        raise CorruptObjectError("the header does not commit to the DEK")


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """An object's kind, and the master key that opened its admin wrap or tombstone.

    `generation` is the admin wrap's; None for tombstones, which have none, and for plaintext,
    which depends on no master key. What an erased project left opens under none.
    """

    kind: Literal["encrypted", "tombstone", "plaintext", "erased"]
    generation: int | None = None
    master_key: str | None = None


def find_key_usage(
    metadata: Mapping[str, str],
    project: str,
    object_key: str,
    admin_keks: AdminKeks,
    generations: Sequence[int],
) -> KeyUsage:
    """Find the master key that an object depends on, from its metadata as on the wire.

    The DEK is not compared with the body: checking objects is a sweep's job. `generations` are
    all that the project ever had, likely ones first; the label's is tried before them.

    Raises:
        UnknownAlgorithmError: `enc-algo` is not an algorithm of SPEC 4.
        CorruptObjectError: metadata stripped or unreadable.
        NoUsableWrapError: the admin wrap, or the tombstone, opens under no available master key.
        KmsUnavailableError: it opens under no available key, and a provider is unreachable.
        SecretNeededError, CustomerKeyRefusedError, CustomerKeyUnavailableError: likewise, of a
            customer key.
    """
    match object_metadata.parse(metadata):
        case Plaintext():
            return KeyUsage("plaintext")
        case Tombstone(sealed):
            for master_key, kek in admin_keks.in_order():
                if try_tombstone(kek, project, object_key, sealed) is not None:
                    return KeyUsage("tombstone", master_key=master_key)
            admin_keks.with_secrets(NO_SECRETS).check_complete()
        case Wraps() as wraps:
            # Every master key at the label's generation first: one of them nearly always fits.
            for candidates in ((wraps.generation,), generations):
                for master_key, kek in admin_keks.in_order(first=wraps.master_key):
                    opened = try_wrap(
                        wraps, "admin", object_key, project, kek, candidates, admin_keks.secrets
                    )
                    if opened is not None:
                        return KeyUsage("encrypted", opened.generation, master_key)
            admin_keks.check_complete(wraps.generation)
    raise NoUsableWrapError("it opens under no available master key")
