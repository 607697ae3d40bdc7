"""Plan the change of one object, as a function of values (SPEC 4.5, 4.6, 5.4, 8.2, 8.7). Pure.

`pipeline.objects.apply` carries out the plan. The plan never trusts a label. It never wraps a DEK
to which the body does not commit. It never chooses between two wraps that both open and differ: the
holder of an API key could otherwise make the user's and the operator's view of an object differ.
And it never lets an admin wrap vouch for an object whose user wrap was made under another keyring:
a thief who restored an old keyring would get the object wrapped for a new key.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from keyturn import metadata as object_metadata
from keyturn.crypto.cobblestone import plaintext_size
from keyturn.crypto.wraps import seal_tombstone
from keyturn.errors import (
    ArchivedObjectError,
    ChunkError,
    CorruptObjectError,
    NoUsableWrapError,
    WrapsDisagreeError,
)
from keyturn.metadata import Plaintext, Tombstone, Wraps
from keyturn_workers.core.admin_keks import AdminKeks
from keyturn_workers.core.customer_keys import NO_SECRETS
from keyturn_workers.core.keyring import DesiredState, Keyring
from keyturn_workers.core.storage_values import ObjectHead
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.wraps import (
    check_header,
    is_current,
    open_user_wrap_with_earlier_kek,
    open_wraps,
    select_dek,
    try_tombstone,
    wrap,
)

__all__ = [
    "AdminKeks",
    "Encrypt",
    "NoOp",
    "ObjectView",
    "PlannedAction",
    "ResealTombstone",
    "Rewrap",
    "plan_action",
]


@dataclass(frozen=True, slots=True)
class ObjectView:
    """An object as one ranged read showed it: its head, and the first 56 bytes of its body.

    `header` is shorter if the body is.
    """

    head: ObjectHead
    header: bytes


@dataclass(frozen=True, slots=True)
class NoOp:
    """The object already matches the desired state."""

    kind: Literal["current", "plaintext", "deleted"]


@dataclass(frozen=True, slots=True)
class Rewrap:
    """New wraps for an unchanged body."""

    wraps: Wraps


@dataclass(frozen=True, slots=True)
class Encrypt:
    """Plaintext to be encrypted in place."""


@dataclass(frozen=True, slots=True)
class ResealTombstone:
    """A tombstone, sealed under the desired admin KEK; the time of the delete is unchanged."""

    sealed: bytes


PlannedAction: TypeAlias = NoOp | Rewrap | Encrypt | ResealTombstone


@dataclass(frozen=True, slots=True)
class _Target:
    """The object's key, and the state that it must reach."""

    object_key: str
    keyring: Keyring
    desired: DesiredState
    admin_keks: AdminKeks
    options: SweepOptions


def plan_action(
    view: ObjectView,
    object_key: str,
    keyring: Keyring,
    desired: DesiredState,
    admin_keks: AdminKeks,
    options: SweepOptions,
) -> PlannedAction:
    """Plan the action that brings an object of the keyring's project to the desired state.

    `keyring` is best read after the object: see `KeyringRolledBackError`. `desired` is the
    keyring's own desired state, derived once for many objects.

    Raises:
        UnknownAlgorithmError: `enc-algo` is not an algorithm of SPEC 4.
        CorruptObjectError: metadata stripped or unreadable, a body cut short, wraps that
            disagree, a DEK that the header does not commit to, forbidden plaintext.
        NoUsableWrapError: no wrap opens.
        WrapsDisagreeError: the two wraps were made under different keyrings, and no repair was
            requested.
        ArchivedObjectError: its body must be restored before it can be read or copied.
        KeyringRolledBackError: the admin wrap opens at a higher generation than the keyring's.
            Meaningless if the keyring was read before the object.
        KmsUnavailableError: a wrap opens under no key, and a master key is unreachable.
        SecretNeededError, CustomerKeyRefusedError, CustomerKeyUnavailableError: a customer secret
            is missing.
    """
    envelope = object_metadata.parse(view.head.metadata)
    target = _Target(object_key, keyring, desired, admin_keks, options)
    match envelope:
        case Wraps():
            return _plan_wrapped(envelope, view, target)
        case Plaintext():
            return _plan_plaintext(view, target)
        case Tombstone():
            return _plan_tombstone(envelope, view, target)


def _plan_wrapped(wraps: Wraps, view: ObjectView, target: _Target) -> NoOp | Rewrap:
    object_key, keyring, desired = target.object_key, target.keyring, target.desired
    _check_length(view.head)
    opened = open_wraps(wraps, object_key, keyring, desired, target.admin_keks)
    admin, user = opened.admin, opened.user
    if admin is None and user is None and target.options.repair:
        secrets = target.admin_keks.secrets
        user = open_user_wrap_with_earlier_kek(wraps, object_key, keyring, secrets)
    dek = select_dek(admin, user)
    check_header(dek, view.header)
    if opened.disagree and not target.options.repair:
        raise WrapsDisagreeError(
            "the user wrap does not hold the admin wrap's DEK under the KEK of its generation"
        )
    if is_current(wraps, admin, user, desired):
        return NoOp("current")
    return Rewrap(wrap(desired, object_key, dek, target.admin_keks.secrets))


def _check_length(head: ObjectHead) -> None:
    _check_not_archived(head)
    try:
        plaintext_size(head.size_bytes)
    except ChunkError as exc:
        raise CorruptObjectError("no sealed body has this length") from exc


def _check_not_archived(head: ObjectHead) -> None:
    if head.archived:
        raise ArchivedObjectError("its storage class must be restored first")


def _plan_plaintext(view: ObjectView, target: _Target) -> NoOp | Encrypt:
    if not target.desired.plaintext_allowed:
        raise CorruptObjectError("an object without enc-algo, and plaintext is forbidden")
    if not target.options.encrypt_plaintext:
        return NoOp("plaintext")
    _check_not_archived(view.head)
    return Encrypt()


def _plan_tombstone(
    tombstone: Tombstone, view: ObjectView, target: _Target
) -> NoOp | ResealTombstone:
    """A tombstone names no master key: the desired one is tried first, then each other.

    A tombstone with a body or a wrap hides data that an earlier key may open.
    """
    desired, object_key, sealed = target.desired, target.object_key, tombstone.sealed
    is_bare = not view.head.size_bytes and not tombstone.unknown_names
    if (
        is_bare
        and try_tombstone(desired.admin_kek, desired.project, object_key, sealed) is not None
    ):
        return NoOp("deleted")
    for _, kek in target.admin_keks.in_order(first=desired.master_key):
        time = try_tombstone(kek, desired.project, object_key, sealed)
        if time is not None:
            return ResealTombstone(
                seal_tombstone(desired.admin_kek, desired.project, object_key, time)
            )
    target.admin_keks.with_secrets(NO_SECRETS).check_complete()  # a tombstone needs no secret
    raise NoUsableWrapError("the tombstone opens under no available master key")
