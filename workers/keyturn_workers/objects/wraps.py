"""The two wraps of a DEK: making, opening and verifying them (SPEC 4.3, 4.6, 7.1, 8.2). Pure.

Labels are hints, never proof. A wrap is tried where the desired state and its label point, and
then at every generation that the project ever had, so that a wrong label makes no object
unreadable. Only what opened counts. So it is for the report that an operator needs before dropping
a master key: a label that names a new master key over a wrap under the old one would otherwise have
the old key dropped, and the object lost with it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from keyturn import metadata as object_metadata
from keyturn.crypto import (
    BODY_CONTEXT,
    HEADER_BYTES,
    Role,
    SealError,
    Secret,
    commits_to,
    open_tombstone,
    to_base64,
    unwrap_dek,
    v0_unwrap_dek,
    wrap_dek,
)
from keyturn.errors import CorruptObjectError, KeyringRolledBackError, NoUsableWrapError
from keyturn.metadata import COBBLESTONE, DELETED, Plaintext, Tombstone, V0Wraps, Wraps
from keyturn_workers.keyring import DesiredState, Keyring
from keyturn_workers.master_keys.admin_keks import AdminKeks


def wrap(
    desired: DesiredState, object_key: str, dek: bytes, *, algorithm: str = COBBLESTONE
) -> Wraps:
    """Wrap a 32-byte DEK under both KEKs, bound to algorithm, project, key and generation."""
    user = _wrap(desired, "user", desired.user_kek, object_key, dek, algorithm)
    admin = _wrap(desired, "admin", desired.admin_kek, object_key, dek, algorithm)
    generation = desired.generation
    return Wraps(algorithm, user, admin, generation, desired.kek_id, desired.master_key)


def _wrap(
    desired: DesiredState, role: Role, kek: Secret, object_key: str, dek: bytes, algorithm: str
) -> bytes:
    return wrap_dek(
        kek,
        role,
        algorithm=algorithm,
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
    storage (SPEC 4.3). The other arguments are those of `keyturn.metadata.build`.
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
    """A DEK, and where its wrap opened.

    `generation` is 0 for a wrap of the earlier system; `master_key` is empty for a user wrap.
    """

    dek: bytes = field(repr=False)
    generation: int
    master_key: str = ""


@dataclass(frozen=True, slots=True)
class OpenedWraps:
    """Both wraps of an object; None for one that does not open.

    `disagree`: the keyring holds the KEK of the admin wrap's generation, and the user wrap does
    not hold the same DEK under it. `user` may then be set all the same, under the current KEK.
    """

    admin: OpenedWrap | None
    user: OpenedWrap | None
    disagree: bool


def past_generations(keyring: Keyring) -> Sequence[int]:
    """Every earlier generation of a project, the newest first."""
    return [entry.generation for entry in reversed(keyring.history)]


def open_wraps(
    wraps: Wraps, object_key: str, keyring: Keyring, desired: DesiredState, admin_keks: AdminKeks
) -> OpenedWraps:
    """Open both wraps, and compare them (SPEC 8.2).

    Both were always written at once, under one keyring. Where this keyring has another KEK for
    that generation than the user wrap, an old keyring was put back and rotated again, or someone
    changed the object: the admin wrap must not vouch for it.

    Raises:
        KeyringRolledBackError, KmsUnavailableError: as `open_admin_wrap`.
    """
    past = past_generations(keyring)
    admin = open_admin_wrap(wraps, object_key, desired, admin_keks, past)
    if admin is None:
        return OpenedWraps(None, open_user_wrap(wraps, object_key, desired, past), disagree=False)
    # None once a clean sweep cleared it: then no keyring shows what the user wrap should be.
    kek = keyring.user_keks.get(admin.generation)
    if kek is not None:
        user = try_wrap(wraps, "user", object_key, keyring.project, kek, (admin.generation,))
        if user is not None and user.dek == admin.dek:
            return OpenedWraps(admin, user, disagree=False)
    # A user wrap at a generation that neither the label nor the admin wrap names serves no
    # reader: searching a long history for it, for each object, would be waste.
    user = open_user_wrap(wraps, object_key, desired, (admin.generation,))
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
        KmsUnavailableError: it opens under none of them, and one is away.
    """
    opened = _open_admin_wrap(wraps, object_key, desired, admin_keks, past)
    if opened is None:
        admin_keks.check_complete()
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
    # Every key at the likely generations comes before any key at past ones: an object that is
    # only one rotation behind must not cost one attempt per earlier rotation.
    for generations in ((desired.generation, wraps.generation), past):
        for master_key, kek in _admin_keks(wraps, desired, admin_keks):
            opened = try_wrap(wraps, "admin", object_key, desired.project, kek, generations)
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
    wraps: Wraps, object_key: str, desired: DesiredState, past: Sequence[int]
) -> OpenedWrap | None:
    """Open the user wrap under the desired KEK only: earlier ones may have leaked (SPEC 8.2)."""
    generations = (desired.generation, wraps.generation, *past)
    return try_wrap(wraps, "user", object_key, desired.project, desired.user_kek, generations)


def open_user_wrap_with_earlier_kek(
    wraps: Wraps, object_key: str, keyring: Keyring
) -> OpenedWrap | None:
    """Open the user wrap under any earlier KEK that the keyring still holds; for repairs only."""
    past = past_generations(keyring)
    for entry in reversed(keyring.history):
        if entry.kek is None:
            continue
        generations = (entry.generation, wraps.generation, *past)
        opened = try_wrap(wraps, "user", object_key, keyring.project, entry.kek, generations)
        if opened is not None:
            return opened
    return None


def try_wrap(
    wraps: Wraps, role: Role, object_key: str, project: str, kek: Secret, generations: Sequence[int]
) -> OpenedWrap | None:
    """Open one of the two wraps under one KEK, at the first generation that fits."""
    for generation in dict.fromkeys(generations):
        try:
            dek = unwrap_dek(
                kek,
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


def try_v0_wrap(kek: Secret | None, wrap: bytes | None) -> OpenedWrap | None:
    """Open a wrap of the earlier system; None if the KEK or the wrap is missing or does not fit."""
    if kek is None or wrap is None:
        return None
    try:
        return OpenedWrap(v0_unwrap_dek(kek, wrap), 0)
    except SealError:
        return None


def try_tombstone(kek: Secret, project: str, object_key: str, sealed: bytes) -> str | None:
    """The time of the delete that a tombstone holds; None if it does not open under this KEK."""
    try:
        return open_tombstone(kek, project, object_key, sealed)
    except SealError:
        return None


def select_dek(admin: OpenedWrap | None, user: OpenedWrap | None) -> bytes:
    """The one DEK that the opened wraps hold.

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
    """Whether both wraps, their labels and the names beside them match the desired state."""
    if admin is None or user is None or wraps.unknown_names:
        return False
    opened = (admin.generation, user.generation, admin.master_key)
    labels = (wraps.generation, wraps.kek_id, wraps.master_key)
    return opened == (desired.generation, desired.generation, desired.master_key) and labels == (
        desired.generation,
        desired.kek_id,
        desired.master_key,
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
    if wraps.algorithm == COBBLESTONE:  # a v0 body commits to no key (SPEC 4.6)
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


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """What an object is, and what its admin wrap or its tombstone opened under.

    `generation` is that of the admin wrap; None for tombstones, which have none, and for
    plaintext and v0 objects, which depend on no master key.
    """

    kind: Literal["encrypted", "tombstone", "plaintext", "v0"]
    generation: int | None = None
    master_key: str | None = None


def find_key_usage(
    metadata: Mapping[str, str],
    project: str,
    object_key: str,
    admin_keks: AdminKeks,
    generations: Sequence[int],
) -> KeyUsage:
    """What an object with this metadata depends on.

    The DEK is not compared with the body: a sweep checks whether objects are intact.

    Args:
        metadata: the object's, as on the wire.
        project: its project.
        object_key: its key, without its project.
        admin_keks: the project's; each is tried.
        generations: those that the project ever had, the likely ones first; tried after the
            label's.

    Raises:
        UnknownAlgorithmError: `enc-algo` is none of those in SPEC 4.
        CorruptObjectError: metadata stripped or unreadable.
        NoUsableWrapError: the admin wrap, or the tombstone, opens under no available master key.
        KmsUnavailableError: it opens under none, and one is away.
    """
    match object_metadata.parse(metadata):
        case Plaintext():
            return KeyUsage("plaintext")
        case V0Wraps():
            return KeyUsage("v0")
        case Tombstone(sealed):
            for master_key, kek in admin_keks.in_order():
                if try_tombstone(kek, project, object_key, sealed) is not None:
                    return KeyUsage("tombstone", master_key=master_key)
        case Wraps() as wraps:
            # Every master key at the label's generation first: nearly always one of them opens it.
            for candidates in ((wraps.generation,), generations):
                for master_key, kek in admin_keks.in_order(first=wraps.master_key):
                    opened = try_wrap(wraps, "admin", object_key, project, kek, candidates)
                    if opened is not None:
                        return KeyUsage("encrypted", opened.generation, master_key)
    admin_keks.check_complete()
    raise NoUsableWrapError("it opens under no available master key")
