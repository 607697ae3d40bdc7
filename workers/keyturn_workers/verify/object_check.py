"""What one key opens of one object: its wrap, and the DEK against the header (SPEC 4, 15.2). Pure.

The key is a project's user KEK, or its admin KEKs by master key id. Only the wrap of that role
is opened. Labels are hints: a wrap is tried at the generation of its label, then at others, so
that a wrong label cannot hide what an old key still opens.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from keyturn import metadata as object_metadata
from keyturn.crypto import (
    BODY_CONTEXT,
    Role,
    SealError,
    Secret,
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
from keyturn.metadata import COBBLESTONE, Plaintext, Tombstone, V0Wraps, Wraps

Kind = Literal["encrypted", "v0", "plaintext", "tombstone", "foreign", "unreadable"]
State = Literal["opened", "closed", "failed", "unchecked"]

# A wrong label is the work of a bucket writer. Each try costs about 7 microseconds.
_OTHER_GENERATIONS: Final = range(1, 33)


@dataclass(frozen=True, slots=True)
class VerificationKeys:
    """The key to check with: one user KEK, or the admin KEKs by the ids of their master keys.

    Attributes:
        project: The project that the keys belong to.
        role: Whose wrap they open.
        keks: At least one. The id of a user KEK has no meaning.
    """

    project: str
    role: Role
    keks: Mapping[str, Secret]

    def ordered(self, first: str) -> Iterator[Secret]:
        """All KEKs, that of the master key `first` before the others."""
        if first in self.keks:
            yield self.keks[first]
        yield from (kek for name, kek in self.keks.items() if name != first)


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
    metadata: Mapping[str, str], header: bytes | None, object_key: str, keys: VerificationKeys
) -> ObjectCheck:
    """Open the wrap of the keys' role, and compare its DEK with the header.

    Args:
        metadata: The object's, as on the wire.
        header: The first 56 bytes of the body, or fewer if it is shorter; None if the body
            cannot be read.
        object_key: The key without the project; may be one that SPEC 1 forbids.
        keys: What to open it with.
    """
    if not is_object_key(object_key):
        return _check_foreign(metadata)
    try:
        envelope = object_metadata.parse(metadata)
    except PermanentError as exc:
        return ObjectCheck.refused("unreadable", exc)
    match envelope:
        case Plaintext():
            return ObjectCheck("plaintext", "unchecked", detail="not encrypted")
        case Tombstone(sealed):
            return _check_tombstone(sealed, object_key, keys)
        case V0Wraps():
            reason = "its wraps are of the earlier system (v0) until a sweep replaces them"
            return ObjectCheck.refused("v0", NoUsableWrapError(reason))
        case Wraps():
            return _check_wraps(envelope, header, object_key, keys)


def _check_foreign(metadata: Mapping[str, str]) -> ObjectCheck:
    """A name that no object of the project can have, such as a folder marker."""
    if any(name.startswith(object_metadata.OWN_PREFIX) for name in metadata):
        return ObjectCheck.refused("foreign", ForeignObjectError("it has an envelope"))
    return ObjectCheck("foreign", "unchecked", detail="not a valid object name")


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
    wraps: Wraps, header: bytes | None, object_key: str, keys: VerificationKeys
) -> ObjectCheck:
    is_v1_body = wraps.algorithm == COBBLESTONE
    kind: Kind = "encrypted" if is_v1_body else "v0"
    dek = _unwrap(wraps, object_key, keys, wraps.generation)
    if dek is None:
        for generation in _OTHER_GENERATIONS:
            if _unwrap(wraps, object_key, keys, generation) is not None:
                label = wraps.generation
                reason = f"it opens at generation {generation}, but its label says {label}"
                return ObjectCheck.refused(kind, NoUsableWrapError(reason))
        return ObjectCheck.refused(kind, _not_opened(), "closed")
    if not is_v1_body:
        return ObjectCheck(kind, "opened", detail="a v0 body commits to no key: not compared")
    if header is None:
        reason = "the wrap opens; the header cannot be read"
        return ObjectCheck(kind, "failed", "archived_object", reason)
    if not commits_to(dek, BODY_CONTEXT, header):
        reason = "the wrap opens, but the header does not commit to its DEK"
        return ObjectCheck.refused(kind, CorruptObjectError(reason))
    return ObjectCheck(kind, "opened")


def _unwrap(wraps: Wraps, object_key: str, keys: VerificationKeys, generation: int) -> bytes | None:
    for kek in keys.ordered(wraps.master_key):
        try:
            return unwrap_dek(
                kek,
                keys.role,
                algorithm=wraps.algorithm,
                project=keys.project,
                object_key=object_key,
                generation=generation,
                wrap=wraps.user if keys.role == "user" else wraps.admin,
            )
        except SealError:
            continue
    return None


def _not_opened() -> NoUsableWrapError:
    return NoUsableWrapError("it does not open under this key")
