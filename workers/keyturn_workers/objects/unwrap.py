"""Which KEK opens a wrap, and at which generation (SPEC 4.3, 8.2). Pure; no I/O.

Labels are hints, never proof: a wrap is tried where the desired state and its label
say, and then at every generation that the project ever had, so that a wrong label makes
no object unreadable. What counts is what opened.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from keyturn.crypto import Role, SealError, Secret, unwrap_dek
from keyturn.errors import CorruptObjectError, KeyringRolledBackError, NoUsableWrapError
from keyturn.metadata import Wraps
from keyturn_workers.keyring import DesiredState, Keyring
from keyturn_workers.objects.operator_keys import OperatorKeys


@dataclass(frozen=True, slots=True)
class OpenedWrap:
    """A DEK, and where its wrap opened; `master_key` is empty for a user wrap."""

    dek: bytes = field(repr=False)
    generation: int
    master_key: str = ""


def past_generations(keyring: Keyring) -> Sequence[int]:
    """Every earlier generation of a project, the newest first."""
    return [entry.generation for entry in reversed(keyring.history)]


def open_admin_wrap(
    wraps: Wraps,
    object_key: str,
    desired: DesiredState,
    operator_keys: OperatorKeys,
    past: Sequence[int],
) -> OpenedWrap | None:
    """The admin wrap, under the desired master key, the label's, or any other that is held.

    Raises:
        KeyringRolledBackError: it opens at a higher generation than the keyring's. Only
            meaningful where the keyring was read after the object.
    """
    opened = _open_admin(wraps, object_key, desired, operator_keys, past)
    if opened is not None and opened.generation > desired.generation:
        raise KeyringRolledBackError(
            f"an object stands at generation {opened.generation}, "
            f"the keyring at {desired.generation}"
        )
    return opened


def _open_admin(
    wraps: Wraps,
    object_key: str,
    desired: DesiredState,
    operator_keys: OperatorKeys,
    past: Sequence[int],
) -> OpenedWrap | None:
    # All keys at the likely generations, before any key at those of the past: what is
    # only one rotation behind must not cost a try for every rotation before.
    for generations in ((desired.generation, wraps.generation), past):
        for name, kek in _admin_keks(wraps, desired, operator_keys):
            opened = try_wrap(wraps, "admin", object_key, desired.project, kek, generations)
            if opened is not None:
                return OpenedWrap(opened.dek, opened.generation, name)
    return None


def _admin_keks(
    wraps: Wraps, desired: DesiredState, operator_keys: OperatorKeys
) -> Iterator[tuple[str, Secret]]:
    yield desired.master_key, desired.admin_kek
    for name in dict.fromkeys((wraps.master_key, *operator_keys.master_keys)):
        kek = None if name == desired.master_key else operator_keys.admin_kek(name, desired.project)
        if kek is not None:
            yield name, kek


def open_user_wrap(
    wraps: Wraps, object_key: str, desired: DesiredState, past: Sequence[int]
) -> OpenedWrap | None:
    """The user wrap, under the desired KEK alone: an earlier one may have leaked (SPEC 8.2)."""
    generations = (desired.generation, wraps.generation, *past)
    return try_wrap(wraps, "user", object_key, desired.project, desired.user_kek, generations)


def open_user_wrap_with_earlier_kek(
    wraps: Wraps, object_key: str, keyring: Keyring
) -> OpenedWrap | None:
    """The user wrap under any earlier KEK that the keyring still holds: for a repair alone."""
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
    """One of the two wraps under one KEK, at the first of the generations where it opens."""
    for generation in dict.fromkeys(generations):
        try:
            dek = unwrap_dek(
                kek,
                role,
                algorithm=wraps.algorithm,
                project=project,
                key=object_key,
                generation=generation,
                wrap=wraps.user if role == "user" else wraps.admin,
            )
        except SealError:
            continue
        return OpenedWrap(dek, generation)
    return None


def select_dek(admin: OpenedWrap | None, user: OpenedWrap | None) -> bytes:
    """The DEK of whatever opened.

    Raises:
        NoUsableWrapError: neither did.
        CorruptObjectError: both did, to different DEKs.
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
    """Whether both wraps, and their labels, are as desired."""
    if admin is None or user is None:
        return False
    opened = (admin.generation, user.generation, admin.master_key)
    labels = (wraps.generation, wraps.kek_id, wraps.master_key)
    return opened == (desired.generation, desired.generation, desired.master_key) and labels == (
        desired.generation,
        desired.kek_id,
        desired.master_key,
    )


def admin_generation(
    wraps: Wraps, project: str, object_key: str, operator_keys: OperatorKeys
) -> int:
    """The generation at which the admin wrap opens under any master key held; 0 for none.

    For objects whose keyring is gone: the label alone says which generation to try.
    """
    for name in operator_keys.master_keys:
        kek = operator_keys.admin_kek(name, project)
        if kek is not None and try_wrap(
            wraps, "admin", object_key, project, kek, (wraps.generation,)
        ):
            return wraps.generation
    return 0
