"""What must become of one object: a function of values (SPEC 5.4, 7.1, 8.2). Pure; no I/O.

Labels are hints, never proof: what counts is which KEK opens a wrap, and that the
header commits to the DEK inside.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from contracts.errors import CorruptObjectError, KeyringRolledBackError, NoUsableWrapError
from contracts.metadata import Wraps
from contracts.sealing import (
    BODY_CONTEXT,
    HEADER_BYTES,
    Role,
    SealError,
    Secret,
    admin_kek,
    commits_to,
    unwrap_dek,
)
from workers.keyring import Desired, Keyring


@dataclass(frozen=True, slots=True)
class Examined:
    """An object whose DEK is known and is the one that its header commits to.

    `current` says that both wraps, and their labels, are as desired.
    """

    dek: bytes
    current: bool


@dataclass(frozen=True, slots=True)
class _Opened:
    dek: bytes
    generation: int
    master_key: str = ""


def examine(
    wraps: Wraps, header: bytes, key: str, desired: Desired, master_keys: Mapping[str, Secret]
) -> Examined:
    """Open both wraps, and compare the object with the desired state.

    `header` is the first 56 bytes of the body.

    Raises:
        NoUsableWrapError: neither wrap opens.
        CorruptObjectError: the wraps hold different DEKs, or the header commits to neither.
        KeyringRolledBackError: the admin wrap opens at a higher generation than the
            keyring's. Only meaningful where the keyring was read after the object.
    """
    admin = _open_admin(wraps, key, desired, master_keys)
    if admin is not None and admin.generation > desired.generation:
        raise KeyringRolledBackError(
            f"an object stands at generation {admin.generation}, "
            f"the keyring at {desired.generation}"
        )
    user = _open_user(wraps, key, desired)
    if admin is None and user is None:
        raise NoUsableWrapError
    dek = _agreed(admin, user)
    if len(header) != HEADER_BYTES or not commits_to(dek, BODY_CONTEXT, header):
        raise CorruptObjectError("the header does not commit to the DEK")
    return Examined(dek, current=_is_current(wraps, admin, user, desired))


def _agreed(admin: _Opened | None, user: _Opened | None) -> bytes:
    if admin is not None and user is not None and admin.dek != user.dek:
        raise CorruptObjectError("the wraps hold different DEKs")
    opened = admin or user
    if opened is None:
        raise NoUsableWrapError
    return opened.dek


def _is_current(
    wraps: Wraps, admin: _Opened | None, user: _Opened | None, desired: Desired
) -> bool:
    if admin is None or user is None:
        return False
    opened = (admin.generation, user.generation, admin.master_key)
    labels = (wraps.generation, wraps.kek_id, wraps.master_key)
    return opened == (desired.generation, desired.generation, desired.master_key) and labels == (
        desired.generation,
        desired.kek_id,
        desired.master_key,
    )


def _open_user(wraps: Wraps, key: str, desired: Desired) -> _Opened | None:
    generations = (desired.generation, wraps.generation)
    return _open(wraps, "user", wraps.user, key, desired.project, desired.user_kek, generations)


def _open_admin(
    wraps: Wraps, key: str, desired: Desired, master_keys: Mapping[str, Secret]
) -> _Opened | None:
    # The desired master key first, then the one that the label names, then the others.
    names = dict.fromkeys((desired.master_key, wraps.master_key, *master_keys))
    for name in names:
        if name not in master_keys:
            continue
        kek = admin_kek(master_keys[name].reveal(), desired.project)
        generations = (desired.generation, wraps.generation)
        opened = _open(wraps, "admin", wraps.admin, key, desired.project, kek, generations)
        if opened is not None:
            return _Opened(opened.dek, opened.generation, name)
    return None


def _open(
    wraps: Wraps,
    role: Role,
    wrap: bytes,
    key: str,
    project: str,
    kek: Secret,
    generations: Iterable[int],
) -> _Opened | None:
    for generation in dict.fromkeys(generations):
        try:
            dek = unwrap_dek(
                kek,
                role,
                algorithm=wraps.algorithm,
                project=project,
                key=key,
                generation=generation,
                wrap=wrap,
            )
        except SealError:
            continue
        return _Opened(dek, generation)
    return None


def verify_own(
    wraps: Wraps, header: bytes, key: str, keyring: Keyring, master_keys: Mapping[str, Secret]
) -> Examined:
    """Whether an object that carries an upload's id is what that upload stored (SPEC 7.1).

    Stricter than `examine`: the admin wrap must open, and so must the user wrap where
    the keyring still holds the KEK of its generation. An id is not authenticated, so
    anything less would let a bucket writer pass off an object as stored.

    Raises:
        CorruptObjectError: a wrap does not verify.
        KeyringRolledBackError: as `examine`.
        UnknownMasterKeyError: this process lacks the keyring's master key.
    """
    desired = keyring.desired(master_keys)
    admin = _open_admin(wraps, key, desired, master_keys)
    if admin is None:
        raise CorruptObjectError("the admin wrap does not open")
    kek = keyring.user_keks.get(wraps.generation)
    if kek is not None:
        own = _open(wraps, "user", wraps.user, key, keyring.project, kek, (wraps.generation,))
        if own is None:
            raise CorruptObjectError("the user wrap does not open")
        _agreed(admin, own)
    try:
        return examine(wraps, header, key, desired, master_keys)
    except NoUsableWrapError as exc:
        raise CorruptObjectError("no wrap opens") from exc
