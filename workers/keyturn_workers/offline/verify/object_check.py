"""The check of one object with one key: its wrap, and the DEK in the header (SPEC 4, 15.2). Pure.

The key is a project's user KEK, or its admin KEKs by master key id; where customer secrets are
given, also its composite with each of them (2.6). An object is in order if the
wrap of that role opens by its labels, and the metadata hold nothing that Keyturn does not write.
Otherwise, and always if the key must be gone, every value is searched for a wrap that it opens.

A bucket writer can hide a wrap of an old key: under another name, role, generation or spelling than
its labels say. So no label decides the search. Every value of Keyturn's own as long as a wrap is
tried in both roles, at many generations. In all other values, each part as long as a wrap is tried
in the keys' role. An attempt takes about 5 microseconds.
"""

import binascii
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from keyturn import metadata as object_metadata
from keyturn.crypto.cobblestone import commits_to
from keyturn.crypto.keys import Secret, composite_kek, customer_secret_id
from keyturn.crypto.wraps import (
    BODY_CONTEXT,
    WRAP_BYTES,
    Role,
    open_tombstone,
    unwrap_dek,
)
from keyturn.errors import (
    CodedError,
    CorruptObjectError,
    ForeignObjectError,
    HiddenWrapError,
    NoUsableWrapError,
    PermanentError,
    SealError,
)
from keyturn.identifiers import is_object_key
from keyturn.metadata import COBBLESTONE, Envelope, Plaintext, Tombstone, Wraps

Kind = Literal["encrypted", "plaintext", "tombstone", "foreign", "unreadable"]
State = Literal["opened", "closed", "failed", "unchecked"]

_ROLES: Final[tuple[Role, ...]] = ("user", "admin")
_WRAP_LETTERS: Final = 139
# A wrap is random: of its 139 letters, about 57 are distinct. In prose, about 30 are.
_MIN_DISTINCT: Final = 40
_MAX_ATTEMPTS: Final = 2**18
"""How often the values of one object that a rewrap keeps are tried: a second or two."""
_FIRST_GENERATIONS: Final = range(1, 33)
_NEARBY: Final = 32
_LABEL: Final = re.compile(r"\s*([0-9]{1,18})")
_URL_SAFE: Final = str.maketrans("-_", "+/")
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9+/]")


@dataclass(frozen=True, slots=True)
class VerificationKeys:
    """The key to check with: one user KEK, or the admin KEKs by the ids of their master keys.

    `role` is that of the wraps they open. `keks` has at least one; the id of a user KEK has no
    meaning. `generations` are further ones at which a wrap may have been made. `composites` are the
    KEKs of wraps that also need a customer secret, by the id of the plain one and the secret's.
    """

    project: str
    role: Role
    keks: Mapping[str, Secret]
    generations: Collection[int] = ()
    composites: Mapping[tuple[str, str], Secret] = field(default_factory=dict)

    def with_secrets(self, secrets: Collection[Secret]) -> "VerificationKeys":
        """Return a copy with the composite of each KEK with each of these customer secrets."""
        made = {
            (name, secret_id): composite_kek(kek, secret, self.role, self.project, secret_id)
            for secret in secrets
            for secret_id in [customer_secret_id(secret)]
            for name, kek in self.keks.items()
        }
        return replace(self, composites={**self.composites, **made})

    @property
    def secret_ids(self) -> frozenset[str]:
        """The ids of the customer secrets that each of the keys can be tried with."""
        ids = {secret_id for _, secret_id in self.composites}
        return frozenset(
            secret_id
            for secret_id in ids
            if all((name, secret_id) in self.composites for name in self.keks)
        )

    @property
    def all_keks(self) -> list[Secret]:
        """The plain KEKs and the composites."""
        return [*self.keks.values(), *self.composites.values()]

    def ordered(self, first: str, secret_id: str | None) -> Iterator[Secret]:
        """Yield all KEKs, those that the labels name before the others."""
        for (_, composite_of), kek in self.composites.items():
            if composite_of == secret_id:
                yield kek
        if first in self.keks:
            yield self.keks[first]
        yield from (kek for name, kek in self.keks.items() if name != first)
        for (_, composite_of), kek in self.composites.items():
            if composite_of != secret_id:
                yield kek


def find_wrap(
    metadata: Mapping[str, str],
    object_key: str,
    keys: VerificationKeys,
    others: Collection[tuple[str, str]] = (),
) -> str | None:
    """Return what opens under the keys, in one line; None if nothing does.

    `metadata` is as on the wire; its `enc-` values are searched. `object_key` is without the
    project, as SPEC 1 allows it. `others` are names and values of all else that the object carries,
    and that a rewrap keeps. Only wraps of the keys' role are found there.

    Raises:
        HiddenWrapError: the others have too much to try.
    """
    generations = _generations(metadata.get(object_metadata.KEK_USER, ""), keys.generations)
    for name, wrap in _candidates(metadata):
        if found := _opens_as(wrap, object_key, keys, _ROLES, generations):
            return f"{name} opens as {found}"
    # A key of one role opens no wrap that Keyturn made for the other.
    attempts, per_wrap = 0, len(generations) * len(keys.all_keks)
    for name, wrap in _embedded(others):
        attempts += per_wrap
        if attempts > _MAX_ATTEMPTS:
            raise HiddenWrapError("too many long values to search: shorten or remove them")
        if found := _opens_as(wrap, object_key, keys, (keys.role,), generations):
            return f"{name} opens as {found}"
    return None


def is_wrap_sized(value: str) -> bool:
    """Check if a value could be a wrap, in any spelling."""
    return len(_decode(value)) == WRAP_BYTES


def _candidates(metadata: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    for name, value in sorted(metadata.items()):
        if name.startswith(object_metadata.OWN_PREFIX) and is_wrap_sized(value):
            yield name, _decode(value)


def _embedded(values: Collection[tuple[str, str]]) -> Iterator[tuple[str, bytes]]:
    """Yield each part of a value that could be a wrap: a header or a text may surround it."""
    for name, value in values:
        letters = _letters(value)
        for first in range(len(letters) - _WRAP_LETTERS + 1):
            part = letters[first : first + _WRAP_LETTERS]
            if len(set(part)) >= _MIN_DISTINCT:
                yield name, _decode(part)


def _letters(value: str) -> str:
    return _FOREIGN.sub("", value.translate(_URL_SAFE))


def _decode(value: str) -> bytes:
    """Return the bytes that any reader could see in a value; empty if there are none.

    Both alphabets are read, and white space, padding, stray bits and foreign characters are
    ignored: refusing a spelling here would overlook the wrap in it.
    """
    letters = _letters(value)
    try:
        return binascii.a2b_base64(letters + "=" * (-len(letters) % 4))
    except binascii.Error:
        return b""


def _generations(label: str, given: Collection[int]) -> list[int]:
    """Return the generations to try, the likely ones first, each once."""
    found = _LABEL.match(label)
    labeled = int(found[1]) if found else 0
    nearby = sorted(range(labeled - _NEARBY, labeled + _NEARBY + 1), key=lambda n: abs(n - labeled))
    tried = [*(nearby if found else ()), *_FIRST_GENERATIONS, *given]
    return [number for number in dict.fromkeys(tried) if number > 0]


def _opens_as(
    wrap: bytes,
    object_key: str,
    keys: VerificationKeys,
    roles: Collection[Role],
    generations: Collection[int],
) -> str | None:
    keks = keys.all_keks
    for generation in generations:
        for role in roles:
            for kek in keks:
                try:
                    unwrap_dek(
                        kek,
                        role,
                        algorithm=COBBLESTONE,
                        project=keys.project,
                        object_key=object_key,
                        generation=generation,
                        wrap=wrap,
                    )
                except SealError:
                    continue
                return f"the {role} wrap of generation {generation}"
    return None


@dataclass(frozen=True, slots=True)
class ObjectCheck:
    """The outcome for one object, or one noncurrent version.

    Attributes:
        kind: The kind by its metadata; `unreadable` if that cannot be determined.
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
        """Return the outcome that an error describes."""
        return cls(kind, state, error.code, error.detail)


def check_object(
    metadata: Mapping[str, str],
    header: bytes | None,
    object_key: str,
    keys: VerificationKeys,
    *,
    must_be_gone: bool = False,
    others: Collection[tuple[str, str]] = (),
) -> ObjectCheck:
    """Open the wrap of the keys' role, and compare its DEK with the header.

    `metadata` is as on the wire. `header` has the first 56 bytes of the body, or fewer if it is
    shorter; None if the body cannot be read. `object_key` is without the project; it may be one
    that SPEC 1 forbids. With `must_be_gone`, a hidden wrap is searched for even if the labels open
    nothing; `others` are further names and values to search.
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
    try:
        found = find_wrap(metadata, object_key, keys, others if must_be_gone else ())
    except HiddenWrapError as exc:
        return ObjectCheck.refused(check.kind, exc)
    if found is None:
        return check
    if must_be_gone:
        return ObjectCheck(check.kind, "opened", detail=found)
    reason = f"{found}, but the labels say otherwise"
    return ObjectCheck.refused(check.kind, NoUsableWrapError(reason))


def _check_foreign(metadata: Mapping[str, str]) -> ObjectCheck:
    """Check a name that no object of the project can have, such as a folder marker."""
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
        case Wraps():
            return _check_wraps(envelope, header, object_key, keys)


def _kind(envelope: Envelope) -> Kind:
    match envelope:
        case Plaintext():
            return "plaintext"
        case Tombstone():
            return "tombstone"
        case Wraps():
            return "encrypted"


def _unexpected(
    envelope: Envelope, metadata: Mapping[str, str], header: bytes | None
) -> str | None:
    """Return content that Keyturn never writes and that can hide a wrap; None without any."""
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
    return ObjectCheck.refused("tombstone", _not_opened(None, keys), "closed")


def _check_wraps(
    wraps: Wraps, header: bytes | None, object_key: str, keys: VerificationKeys
) -> ObjectCheck:
    kind: Kind = "encrypted"
    dek = _unwrap(wraps, object_key, keys)
    if dek is None:
        return ObjectCheck.refused(kind, _not_opened(wraps.secret_id, keys), "closed")
    if header is None:
        reason = "the wrap opens; the header cannot be read"
        return ObjectCheck(kind, "failed", "archived_object", reason)
    if not commits_to(dek, BODY_CONTEXT, header):
        reason = "the wrap opens, but the header does not commit to its DEK"
        return ObjectCheck.refused(kind, CorruptObjectError(reason))
    return ObjectCheck(kind, "opened")


def _unwrap(wraps: Wraps, object_key: str, keys: VerificationKeys) -> bytes | None:
    """Return the DEK in the wrap of the keys' role, as its labels say."""
    for kek in keys.ordered(wraps.master_key, wraps.secret_id):
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


def _not_opened(secret_id: str | None, keys: VerificationKeys) -> NoUsableWrapError:
    if secret_id is None or secret_id in keys.secret_ids:
        return NoUsableWrapError("it does not open under this key")
    return NoUsableWrapError(
        f"it needs a customer secret, by its label {secret_id}: --customer-secret-file"
    )
