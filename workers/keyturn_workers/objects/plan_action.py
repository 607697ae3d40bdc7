"""What must become of one object, as a function of values (SPEC 4.5 to 4.7, 5.4, 8.2, 8.7). Pure.

`keyturn_workers.objects` carries out what is decided here. It must never believe a label, wrap
a DEK that the body does not commit to (or, of an earlier system's body, that it is not
opened under first), nor choose between two wraps that both open and differ: whoever holds
an API key could otherwise make the user's and the operator's view of an object differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from keyturn import metadata as object_metadata
from keyturn.crypto import (
    ChunkError,
    SealError,
    Secret,
    open_tombstone,
    plaintext_size,
    seal_tombstone,
    v0_unwrap_dek,
)
from keyturn.errors import (
    ArchivedObjectError,
    CorruptObjectError,
    NoUsableWrapError,
)
from keyturn.metadata import V0_ALGORITHM, Plaintext, Tombstone, V0Wraps, Wraps
from keyturn_workers.keyring import DesiredState, Keyring
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.objects.unwrap import (
    OpenedWrap,
    is_current,
    open_admin_wrap,
    open_user_wrap,
    open_user_wrap_with_earlier_kek,
    past_generations,
    select_dek,
)
from keyturn_workers.objects.verify import check_header
from keyturn_workers.objects.wrap import wrap
from keyturn_workers.storage import Head

__all__ = [
    "Encrypt",
    "NoOp",
    "ObjectView",
    "OperatorKeys",
    "Options",
    "PlannedAction",
    "ResealTombstone",
    "Rewrap",
    "plan_action",
]

V0_MIN_BYTES: Final = 28
"""Nonce (12) and tag (16): no body of the earlier system is shorter."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a sweep was asked to do beyond bringing wraps to the desired state (SPEC 6.6)."""

    encrypt_plaintext: bool = False
    repair: bool = False


@dataclass(frozen=True, slots=True)
class ObjectView:
    """An object as one ranged read showed it: its head, and its first 56 bytes.

    `header` is shorter where the body is.
    """

    head: Head
    header: bytes


@dataclass(frozen=True, slots=True)
class NoOp:
    """As desired already."""

    kind: Literal["current", "plaintext", "deleted"]


@dataclass(frozen=True, slots=True)
class Rewrap:
    """New wraps for a body that stays as it is.

    A body of the earlier system must first open whole under `body_dek`, where that is
    given: nothing in it commits to its key.
    """

    wraps: Wraps
    body_dek: Secret | None


@dataclass(frozen=True, slots=True)
class Encrypt:
    """Plaintext that is to be encrypted where it stands."""


@dataclass(frozen=True, slots=True)
class ResealTombstone:
    """A tombstone, sealed under the desired admin KEK; it tells the same time."""

    sealed: bytes


PlannedAction: TypeAlias = NoOp | Rewrap | Encrypt | ResealTombstone


def plan_action(
    view: ObjectView,
    object_key: str,
    keyring: Keyring,
    desired: DesiredState,
    operator_keys: OperatorKeys,
    options: Options,
) -> PlannedAction:
    """What brings the object `object_key` of the keyring's project to the desired state.

    Args:
        view: the object.
        object_key: its key, without its project.
        keyring: best read after the object; see `KeyringRolledBackError` below.
        desired: the keyring's own desired state, derived once for many objects.
        operator_keys: the master keys.
        options: the sweep's.

    Raises:
        UnknownAlgorithmError: `enc-algo` is none of SPEC 4's.
        CorruptObjectError: metadata stripped or unreadable, a body cut short, wraps that
            disagree, a DEK that the header does not commit to, plaintext where it is forbidden.
        NoUsableWrapError: no wrap opens; wraps of the earlier system where v0 is forbidden.
        ArchivedObjectError: its body must be restored before it can be read or copied.
        KeyringRolledBackError: the admin wrap opens at a higher generation than the
            keyring's. Means nothing where the keyring was read before the object.
    """
    envelope = object_metadata.parse(view.head.metadata)
    match envelope:
        case Wraps():
            return _with_wraps(envelope, view, object_key, keyring, desired, operator_keys, options)
        case Plaintext():
            return _plaintext(view, desired, options)
        case Tombstone():
            return _tombstone(envelope, object_key, desired, operator_keys)
        case V0Wraps():
            return _with_v0_wraps(envelope, view, object_key, keyring, desired, operator_keys)


def _with_wraps(
    wraps: Wraps,
    view: ObjectView,
    object_key: str,
    keyring: Keyring,
    desired: DesiredState,
    operator_keys: OperatorKeys,
    options: Options,
) -> NoOp | Rewrap:
    v0_body = wraps.algorithm == V0_ALGORITHM
    _check_length(view.head, v0_body=v0_body)
    past = past_generations(keyring)
    admin = open_admin_wrap(wraps, object_key, desired, operator_keys, past)
    user = open_user_wrap(wraps, object_key, desired, _worth_trying(admin, past, v0_body=v0_body))
    if admin is None and user is None and options.repair:
        user = open_user_wrap_with_earlier_kek(wraps, object_key, keyring)
    dek = select_dek(admin, user)
    if not v0_body:
        check_header(dek, view.header)
    if is_current(wraps, admin, user, desired):
        return NoOp("current")
    # By the admin wrap, the operator's own word stands for a v0 body; a DEK that the user
    # wrap alone gave could be anything that whoever holds the API key put there.
    unproven = Secret(dek) if v0_body and admin is None else None
    return Rewrap(wrap(desired, object_key, dek, algorithm=wraps.algorithm), unproven)


def _worth_trying(admin: OpenedWrap | None, past: Sequence[int], *, v0_body: bool) -> Sequence[int]:
    """The generations at which a user wrap could still matter, beside the likely two.

    Where the admin wrap gave the DEK and the header commits to it, a user wrap that opens
    at a generation which neither label nor admin wrap names is nobody's view, and is made
    anew: it need not be looked for through a long history, once an object.
    """
    return past if admin is None or v0_body else (admin.generation,)


def _check_length(head: Head, *, v0_body: bool) -> None:
    if head.archived:
        raise ArchivedObjectError("its storage class must be restored first")
    if v0_body:
        if head.size_bytes < V0_MIN_BYTES:
            raise CorruptObjectError("no body of the earlier system has this length")
        return
    try:
        plaintext_size(head.size_bytes)
    except ChunkError as exc:
        raise CorruptObjectError("no sealed body has this length") from exc


def _plaintext(view: ObjectView, desired: DesiredState, options: Options) -> NoOp | Encrypt:
    if not desired.plaintext_allowed:
        raise CorruptObjectError("an object without enc-algo, and plaintext is forbidden")
    if not options.encrypt_plaintext:
        return NoOp("plaintext")
    if view.head.archived:
        raise ArchivedObjectError("its storage class must be restored first")
    return Encrypt()


def _tombstone(
    tombstone: Tombstone, object_key: str, desired: DesiredState, operator_keys: OperatorKeys
) -> PlannedAction:
    """A tombstone names no master key: the desired one is tried, then each other."""
    if _deleted_at(tombstone, object_key, desired.project, desired.admin_kek) is not None:
        return NoOp("deleted")
    for name in operator_keys.master_keys:
        kek = operator_keys.admin_kek(name, desired.project)
        time = None if kek is None else _deleted_at(tombstone, object_key, desired.project, kek)
        if time is not None:
            return ResealTombstone(
                seal_tombstone(desired.admin_kek, desired.project, object_key, time)
            )
    raise NoUsableWrapError("a tombstone that opens under no master key")


def _deleted_at(tombstone: Tombstone, object_key: str, project: str, kek: Secret) -> str | None:
    try:
        return open_tombstone(kek, project, object_key, tombstone.sealed)
    except SealError:
        return None


def _with_v0_wraps(
    wraps: V0Wraps,
    view: ObjectView,
    object_key: str,
    keyring: Keyring,
    desired: DesiredState,
    operator_keys: OperatorKeys,
) -> Rewrap:
    if not keyring.v0_allowed:
        # They are bound to nothing: anyone could have moved them here from elsewhere.
        raise NoUsableWrapError("wraps of the earlier system, and v0 is forbidden")
    _check_length(view.head, v0_body=True)
    admin = _v0_unwrap(operator_keys.v0_admin_kek, wraps.admin)
    user = _v0_unwrap(keyring.v0_kek, wraps.user)
    dek = select_dek(admin, user)
    return Rewrap(wrap(desired, object_key, dek, algorithm=V0_ALGORITHM), Secret(dek))


def _v0_unwrap(kek: Secret | None, wrapped: bytes | None) -> OpenedWrap | None:
    if kek is None or wrapped is None:
        return None
    try:
        return OpenedWrap(v0_unwrap_dek(kek, wrapped), 0)
    except SealError:
        return None
