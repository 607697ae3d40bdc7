"""What one key opens of one object: its wrap, and the DEK against the header (SPEC 4, 15.2). Pure.

The key is a project's user KEK, or its admin KEKs by master key id. An object is in order if the
wrap of that role opens by its labels, and the metadata hold nothing that Keyturn does not write.
Otherwise, and always where the key must be gone, every value is searched for what the key opens,
because labels are hints (`wrap_search`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from keyturn import metadata as object_metadata
from keyturn.crypto import (
    BODY_CONTEXT,
    WRAP_BYTES,
    SealError,
    commits_to,
    open_tombstone,
    unwrap_dek,
)
from keyturn.errors import (
    CodedError,
    CorruptObjectError,
    ForeignObjectError,
    NoUsableWrapError,
    PermanentError,
)
from keyturn.identifiers import is_object_key
from keyturn.metadata import COBBLESTONE, Envelope, Plaintext, Tombstone, V0Wraps, Wraps
from keyturn_workers.verify.wrap_search import VerificationKeys, find_wrap, is_wrap_sized

Kind = Literal["encrypted", "v0", "plaintext", "tombstone", "foreign", "unreadable"]
State = Literal["opened", "closed", "failed", "unchecked"]


@dataclass(frozen=True, slots=True)
class ObjectCheck:
    """The outcome for one object, or one noncurrent version.

    Attributes:
        kind: What its metadata says that it is; `unreadable` if that cannot be determined.
        state: `opened`: the key opens it, and the header commits to the DEK. `closed`: the key
            does not open it. `failed`: neither is certain, see `code`. `unchecked`: there is
            nothing that this key could open.
        code: A code of SPEC 12, for `closed` and `failed`.
        detail: One line for people.
    """

    kind: Kind
    state: State
    code: str | None = None
    detail: str = ""

    @classmethod
    def refused(cls, kind: Kind, error: CodedError, state: State = "failed") -> "ObjectCheck":
        """The outcome that an error describes."""
        return cls(kind, state, error.code, error.detail)


def check_object(
    metadata: Mapping[str, str],
    header: bytes | None,
    object_key: str,
    keys: VerificationKeys,
    *,
    must_be_gone: bool = False,
) -> ObjectCheck:
    """Open the wrap of the keys' role, and compare its DEK with the header.

    Args:
        metadata: The object's, as on the wire.
        header: The first 56 bytes of the body, or fewer if it is shorter; None if the body
            cannot be read.
        object_key: The key without the project; may be one that SPEC 1 forbids.
        keys: What to open it with.
        must_be_gone: Whether to search for a hidden wrap even where the labels open nothing.
    """
    if not is_object_key(object_key):
        return _check_foreign(metadata)
    try:
        envelope = object_metadata.parse(metadata)
    except PermanentError as exc:
        check = ObjectCheck.refused("unreadable", exc)
    else:
        check = _check_envelope(envelope, metadata, header, object_key, keys)
    if check.state == "opened" or not (must_be_gone or check.state == "closed"):
        return check
    found = find_wrap(metadata, object_key, keys)
    if found is None:
        return check
    if must_be_gone:
        return ObjectCheck(check.kind, "opened", detail=found)
    reason = f"{found}, but the labels say otherwise"
    return ObjectCheck.refused(check.kind, NoUsableWrapError(reason))


def _check_foreign(metadata: Mapping[str, str]) -> ObjectCheck:
    """A name that no object of the project can have, such as a folder marker."""
    if any(name.startswith(object_metadata.OWN_PREFIX) for name in metadata):
        return ObjectCheck.refused("foreign", ForeignObjectError("it has an envelope"))
    return ObjectCheck("foreign", "unchecked", detail="not a valid object name")


def _check_envelope(
    envelope: Envelope,
    metadata: Mapping[str, str],
    header: bytes | None,
    object_key: str,
    keys: VerificationKeys,
) -> ObjectCheck:
    kind = _kind(envelope)
    if reason := _unexpected(envelope, metadata, header):
        return ObjectCheck.refused(kind, CorruptObjectError(reason))
    match envelope:
        case Plaintext():
            return ObjectCheck(kind, "unchecked", detail="not encrypted")
        case Tombstone(sealed):
            return _check_tombstone(sealed, object_key, keys)
        case V0Wraps():
            reason = "its wraps are of the earlier system (v0) until a sweep replaces them"
            return ObjectCheck.refused(kind, NoUsableWrapError(reason))
        case Wraps():
            return _check_wraps(envelope, kind, header, object_key, keys)


def _kind(envelope: Envelope) -> Kind:
    match envelope:
        case Plaintext():
            return "plaintext"
        case Tombstone():
            return "tombstone"
        case Wraps(algorithm=algorithm) if algorithm == COBBLESTONE:
            return "encrypted"
        case Wraps() | V0Wraps():
            return "v0"


def _unexpected(
    envelope: Envelope, metadata: Mapping[str, str], header: bytes | None
) -> str | None:
    """What no writer of Keyturn's leaves on an object, and a wrap can hide in; None if nothing."""
    names = object_metadata.unknown_names(metadata)
    if names:
        return f"it has names that Keyturn does not write: {ascii(', '.join(names))[1:-1][:200]}"
    wraps = (object_metadata.DEK_USER, object_metadata.DEK_ADMIN)
    for name, value in metadata.items():
        if name in object_metadata.OWN_NAMES.difference(wraps) and is_wrap_sized(value):
            return f"{name} has the length of a wrap"
    match envelope:
        case Tombstone() if object_metadata.DEK_USER in metadata:
            return "a tombstone with a user wrap"
        case Tombstone() if header != b"":
            return "a tombstone with a body"
        case Wraps(user=user, admin=admin) if {len(user), len(admin)} != {WRAP_BYTES}:
            return f"a wrap has {WRAP_BYTES} bytes, and one of its wraps does not"
    return None


def _check_tombstone(sealed: bytes, object_key: str, keys: VerificationKeys) -> ObjectCheck:
    if keys.role == "user":
        return ObjectCheck("tombstone", "unchecked", detail="sealed under the admin KEK only")
    for kek in keys.keks.values():
        try:
            open_tombstone(kek, keys.project, object_key, sealed)
        except SealError:
            continue
        return ObjectCheck("tombstone", "opened")
    return ObjectCheck.refused("tombstone", _not_opened(), "closed")


def _check_wraps(
    wraps: Wraps, kind: Kind, header: bytes | None, object_key: str, keys: VerificationKeys
) -> ObjectCheck:
    dek = _unwrap(wraps, object_key, keys)
    if dek is None:
        return ObjectCheck.refused(kind, _not_opened(), "closed")
    if kind == "v0":
        return ObjectCheck(kind, "opened", detail="a v0 body commits to no key: not compared")
    if header is None:
        reason = "the wrap opens; the header cannot be read"
        return ObjectCheck(kind, "failed", "archived_object", reason)
    if not commits_to(dek, BODY_CONTEXT, header):
        reason = "the wrap opens, but the header does not commit to its DEK"
        return ObjectCheck.refused(kind, CorruptObjectError(reason))
    return ObjectCheck(kind, "opened")


def _unwrap(wraps: Wraps, object_key: str, keys: VerificationKeys) -> bytes | None:
    """The DEK in the wrap of the keys' role, as its labels say."""
    for kek in keys.ordered(wraps.master_key):
        try:
            return unwrap_dek(
                kek,
                keys.role,
                algorithm=wraps.algorithm,
                project=keys.project,
                object_key=object_key,
                generation=wraps.generation,
                wrap=wraps.user if keys.role == "user" else wraps.admin,
            )
        except SealError:
            continue
    return None


def _not_opened() -> NoUsableWrapError:
    return NoUsableWrapError("it does not open under this key")
