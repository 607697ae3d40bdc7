"""A project's keyring as a value and as its sealed record, and its changes. Pure.

See SPEC 5.1, 5.2, 8.1 and 8.6. A record that does not open under its own master key, or that
belongs to another project, was forged or moved: no object may be wrapped by it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

from keyturn.crypto.base64 import from_base64, to_base64
from keyturn.crypto.keys import Secret, kek_id
from keyturn.errors import (
    CorruptObjectError,
    GenerationMismatchError,
    KekReusedError,
)
from keyturn.identifiers import is_short_name, is_uuid, parse_time
from keyturn.request_origin import RequestOrigin
from keyturn_workers.core.customer_keys import CustomerKey, CustomerSecrets, KeyName

_KEK_BYTES: Final = 32
_KEK_ID: Final = re.compile(r"[0-9a-f]{16}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MAX_LEASE_S: Final = 10**6
_MAX_GENERATION: Final = 10**18
_MAX_SERIAL: Final = 2**63
_PERMISSIONS: Final = ("allowed", "forbidden")
UNKNOWN_KEK_ID: Final = "0" * 16
"""The KEK id of a generation whose keyring was lost: a mark has its customer key alone."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The keys of a project from one rotation to the next: the current ones, or in the history.

    `kek` is the user KEK. It is kept until a clean sweep, and is None after it; so is what
    `customer_key` has of the secret. `rotation_id` is the id of the rotation, or enrollment, that
    created the generation. `origin` describes that request; the current generation's is in the
    keyring, and another implementation may record none.
    """

    generation: int
    kek_id: str
    kek: Secret | None
    rotation_id: str
    requested_at: str
    at: str
    origin: RequestOrigin | None = None
    customer_key: CustomerKey | None = None

    @property
    def secret_id(self) -> str | None:
        """The id of the customer secret that wraps at this generation need; None if none."""
        return None if self.customer_key is None else self.customer_key.secret_id


@dataclass(frozen=True)
class DesiredState:
    """The keys that a project's objects must be wrapped under (SPEC 5.2).

    With a `secret_id` the wraps need that customer secret, too.
    """

    project: str
    generation: int
    kek_id: str
    user_kek: Secret
    master_key: str
    admin_kek: Secret
    plaintext_allowed: bool
    secret_id: str | None = None

    def same_state(self, other: "DesiredState") -> bool:
        """Return True if an object made for one state matches the other."""
        return (
            self.generation == other.generation
            and self.user_kek == other.user_kek
            and self.master_key == other.master_key
            and self.plaintext_allowed == other.plaintext_allowed
            and self.secret_id == other.secret_id
        )


@dataclass(frozen=True)
class Keyring:
    """The record of a project's keys; `current` is the desired generation.

    `origin` describes the request that created the current generation. `lease_s` is the longest
    lease, in seconds, of any worker that wrote this record. Workers always write both; in another
    implementation's record they may be None and 0. `evidence` is the digest of the newest
    evidence. `serial` counts the changes of the record (0 if another implementation recorded none).
    `recovery` is the id of the request that accepted a restored record, if any (SPEC 5.5).
    """

    project: str
    master_key: str
    current: Generation
    origin: RequestOrigin | None
    lease_s: int
    plaintext_allowed: bool = False
    history: tuple[Generation, ...] = ()
    evidence: str | None = None
    serial: int = 0
    recovery: str | None = None

    def origin_of(self, entry: Generation) -> RequestOrigin | None:
        """The request that created a generation; None if it is not recorded."""
        return self.origin if entry is self.current else entry.origin

    @property
    def has_old_keks(self) -> bool:
        """True if the record has a KEK of an earlier generation; a clean sweep clears them."""
        return any(entry.kek is not None for entry in self.history)

    @property
    def enrollment(self) -> Generation:
        """The generation that the enrollment created, after those that it adopted, if any."""
        entries = (*self.history, self.current)
        return next(e for e in reversed(entries) if e.rotation_id == entries[0].rotation_id)

    @cached_property
    def user_keks(self) -> dict[int, Secret]:
        """The user KEKs that the record still has, by generation."""
        entries = (*self.history, self.current)
        return {entry.generation: entry.kek for entry in entries if entry.kek is not None}

    @cached_property
    def customer_keys(self) -> dict[int, CustomerKey]:
        """The customer keys whose secrets the record still has, by generation."""
        entries = (*self.history, self.current)
        return {
            entry.generation: entry.customer_key
            for entry in entries
            if entry.customer_key is not None and not entry.customer_key.is_cleared
        }

    @property
    def secrets(self) -> CustomerSecrets:
        """The record's customer keys, before any secret was asked for."""
        return CustomerSecrets(self.customer_keys)

    def secrets_from(self, earlier: CustomerSecrets) -> CustomerSecrets:
        """The secrets that were given for an earlier read of the project's record.

        Raises:
            SecretNeededError: that of the current generation was not asked for yet.
            CustomerKeyRefusedError, CustomerKeyUnavailableError: it was not given. Then nothing of
                the project is opened, not even by a former secret.
        """
        secrets = replace(earlier, keys=self.customer_keys)
        secrets.require(self.current.generation)
        return secrets

    def desired(self, admin_kek: Secret) -> DesiredState:
        """The desired state, given the project's admin KEK under the record's master key."""
        if self.current.kek is None:
            raise CorruptObjectError("the keyring's current KEK is missing")
        return DesiredState(
            project=self.project,
            generation=self.current.generation,
            kek_id=self.current.kek_id,
            user_kek=self.current.kek,
            master_key=self.master_key,
            admin_kek=admin_kek,
            plaintext_allowed=self.plaintext_allowed,
            secret_id=self.current.secret_id,
        )


def record_version(keyring: Keyring) -> int:
    """The version of the record: 2 if it has what a reader of version 1 must not overlook."""
    entries = (*keyring.history, keyring.current)
    return 2 if any(entry.customer_key is not None for entry in entries) else 1


def keyring_to_json(keyring: Keyring) -> dict[str, Any]:
    """The sealed part of the record."""
    return {
        **_entry_json(keyring.current),
        "plaintext": _permission(allowed=keyring.plaintext_allowed),
        "history": [_entry_json(entry) for entry in keyring.history],
        **({"lease_s": keyring.lease_s} if keyring.lease_s else {}),
        **_origin_json(keyring.origin),
        "serial": keyring.serial,
        **_set_json(keyring),
    }


def _entry_json(entry: Generation) -> dict[str, Any]:
    return {
        **_origin_json(entry.origin),
        "generation": entry.generation,
        "kek_id": entry.kek_id,
        "kek": _kek_json(entry.kek),
        "rotation_id": entry.rotation_id,
        "requested_at": entry.requested_at,
        "at": entry.at,
        **({} if entry.customer_key is None else {"customer_key": entry.customer_key.to_json()}),
    }


def _origin_json(origin: RequestOrigin | None) -> dict[str, str]:
    return {} if origin is None else {"publisher": origin.publisher, "request": origin.request}


def _set_json(keyring: Keyring) -> dict[str, str]:
    """Optional fields, omitted if unset."""
    fields = {"evidence": keyring.evidence, "recovery": keyring.recovery}
    return {name: value for name, value in fields.items() if value is not None}


def _kek_json(kek: Secret | None) -> str | None:
    return None if kek is None else to_base64(kek.reveal())


def _permission(*, allowed: bool) -> str:
    return "allowed" if allowed else "forbidden"


def keyring_from_json(project: str, master_key: str, rest: Mapping[str, Any]) -> Keyring:
    """Read a keyring from the opened part of a record that names this master key.

    Raises:
        CorruptObjectError: its fields are malformed.
    """
    try:
        return _keyring(project, master_key, rest)
    except (ValueError, TypeError, KeyError):
        # No cause: the opened record contains keys, and an exception may repeat them.
        raise CorruptObjectError("the keyring's fields are malformed") from None


def _keyring(project: str, master_key: str, rest: Mapping[str, Any]) -> Keyring:
    if rest["plaintext"] not in _PERMISSIONS:
        raise ValueError("permissions")
    current = _entry(rest)
    history = tuple(replace(_entry(entry), origin=_origin(entry)) for entry in rest["history"])
    generations = [entry.generation for entry in (*history, current)]
    if current.kek is None or generations != sorted(set(generations)):
        raise ValueError("generations")
    if current.customer_key is not None and (
        current.customer_key.is_cleared or rest["plaintext"] == "allowed"
    ):
        raise ValueError("customer key")
    return Keyring(
        project=project,
        master_key=master_key,
        current=current,
        origin=_origin(rest),
        lease_s=_lease_s(rest["lease_s"]) if "lease_s" in rest else 0,
        plaintext_allowed=rest["plaintext"] == "allowed",
        history=history,
        evidence=_evidence(rest.get("evidence")),
        serial=_serial(rest.get("serial", 0)),
        recovery=_recovery(rest.get("recovery")),
    )


def _origin(fields: Mapping[str, Any]) -> RequestOrigin | None:
    if "publisher" not in fields and "request" not in fields:
        return None
    return RequestOrigin(_publisher(fields["publisher"]), _digest(fields["request"]))


def _lease_s(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _MAX_LEASE_S:
        raise ValueError("lease")
    return value


def _serial(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MAX_SERIAL:
        raise ValueError("serial")
    return value


def _recovery(value: str | None) -> str | None:
    if value is not None and not is_uuid(value):
        raise ValueError("recovery")
    return value


def _publisher(value: str) -> str:
    if not is_short_name(value):
        raise ValueError("publisher")
    return value


def _digest(value: str) -> str:
    if _DIGEST.fullmatch(value) is None:
        raise ValueError("digest")
    return value


def _evidence(value: str | None) -> str | None:
    return None if value is None else _digest(value)


def _entry(fields: Mapping[str, Any]) -> Generation:
    generation, label, kek = fields["generation"], fields["kek_id"], _kek(fields["kek"])
    if type(generation) is not int or not 1 <= generation < _MAX_GENERATION:
        raise ValueError("generation")
    if _KEK_ID.fullmatch(label) is None or (kek is not None and kek_id(kek) != label):
        raise ValueError("KEK id")
    if not is_uuid(fields["rotation_id"]):
        raise ValueError("rotation id")
    parse_time(fields["requested_at"])
    parse_time(fields["at"])
    customer_key = fields.get("customer_key")
    return Generation(
        generation,
        label,
        kek,
        fields["rotation_id"],
        fields["requested_at"],
        fields["at"],
        customer_key=None if customer_key is None else CustomerKey.from_json(customer_key),
    )


def _kek(value: str | None) -> Secret | None:
    if value is None:
        return None
    decoded = from_base64(value)
    if len(decoded) != _KEK_BYTES:
        raise ValueError("KEK length")
    return Secret(decoded)


def check_rotation(keyring: Keyring, *, requested_at: str, expected_generation: int | None) -> None:
    """Check that a rotation may be applied to the keyring.

    Raises:
        GenerationMismatchError: the rotation was requested before the last accepted one, or
            expects another generation.
    """
    current = keyring.current
    if parse_time(requested_at) < parse_time(current.requested_at):
        raise GenerationMismatchError("a rotation requested later was accepted already")
    if expected_generation is not None and expected_generation != current.generation:
        raise GenerationMismatchError(
            f"the project is at generation {current.generation}, not {expected_generation}"
        )


def rotate(
    keyring: Keyring,
    *,
    kek: Secret | None = None,
    customer_key: CustomerKey | None = None,
    rotation_id: str,
    requested_at: str,
    at: str,
    origin: RequestOrigin,
) -> Keyring:
    """Apply a rotation: a new current generation; the previous one joins the history.

    The new generation has this user KEK and this customer key, and keeps what is not given.

    Raises:
        KekReusedError: the KEK is the current one or in the history.
        GenerationMismatchError: a customer key, while the project allows plaintext.
    """
    if kek is not None:
        check_new_kek(keyring, kek)
    if customer_key is not None:
        check_no_plaintext(keyring)
    current = Generation(
        generation=keyring.current.generation + 1,
        kek_id=keyring.current.kek_id if kek is None else kek_id(kek),
        kek=keyring.current.kek if kek is None else kek,
        rotation_id=rotation_id,
        requested_at=requested_at,
        at=at,
        customer_key=customer_key or keyring.current.customer_key,
    )
    return replace(
        keyring,
        current=current,
        history=(*keyring.history, replace(keyring.current, origin=keyring.origin)),
        origin=origin,
    )


def check_new_kek(keyring: Keyring, kek: Secret) -> None:
    """Check that a project never had this user KEK.

    Raises:
        KekReusedError: it is the current one or in the history.
    """
    if kek_id(kek) in {entry.kek_id for entry in (*keyring.history, keyring.current)}:
        raise KekReusedError("the project has or had this key")


def check_no_plaintext(keyring: Keyring) -> None:
    """Check that a project may have a customer key.

    Raises:
        GenerationMismatchError: it allows plaintext.
    """
    if keyring.plaintext_allowed:
        raise GenerationMismatchError(
            "the project allows plaintext, which no customer key protects: end that by a sweep "
            "with encrypt_plaintext first"
        )


def lost_generations(
    customer_keys: Mapping[int, CustomerKey], created: Generation, origin: RequestOrigin | None
) -> tuple[Generation, ...]:
    """Entries for generations of a lost keyring: only their customer keys are known, by a mark.

    The rest is that of the generation that was created when they were found.
    """
    return tuple(
        replace(
            created,
            generation=generation,
            kek_id=UNKNOWN_KEK_ID,
            kek=None,
            origin=origin,
            customer_key=customer_key,
        )
        for generation, customer_key in sorted(customer_keys.items())
    )


def take_over(
    keyring: Keyring,
    customer_keys: Mapping[int, CustomerKey],
    *,
    above: int,
    recovery: str,
    at: str,
) -> Keyring:
    """A restored keyring, with the customer keys of a later one that it lacks (SPEC 5.5).

    The later one's generations join its history, and its own current generation is repeated above
    them, and above the number `above`. Otherwise the objects at these generations would be refused
    for ever, or the next rotation would give the same number to another secret. The repeated
    generation has the newest customer key: no wrap may need less than before.

    `recovery` is the id of the request that accepts the keyring.

    Raises:
        GenerationMismatchError: a generation of both has different customer keys.
    """
    known = {entry.generation: entry for entry in (*keyring.history, keyring.current)}
    for generation in known.keys() & customer_keys.keys():
        if known[generation].secret_id != customer_keys[generation].secret_id:
            raise GenerationMismatchError(
                f"the record and the mark have different customer keys at generation {generation}: "
                "restore the newest record, or remove this one and enroll with adopt"
            )
    lost = {number: key for number, key in customer_keys.items() if number not in known}
    if not lost:
        return keyring
    every = {**customer_keys, **keyring.customer_keys}
    repeated = replace(
        keyring.current,
        generation=max(above, keyring.current.generation) + 1,
        rotation_id=recovery,
        at=at,
        customer_key=every[max(every)],
    )
    before = replace(keyring.current, origin=keyring.origin)
    # Without an origin: these generations are no rotations, whose ends would be published.
    entries = (*keyring.history, before, *lost_generations(lost, repeated, None))
    return replace(
        keyring,
        current=repeated,
        origin=None,
        plaintext_allowed=False,
        history=tuple(sorted(entries, key=lambda entry: entry.generation)),
    )


def find_generation_number(keyring: Keyring, rotation_id: str) -> int | None:
    """The number of the generation that this request created; None if it created none."""
    entry = find_generation(keyring, rotation_id)
    return None if entry is None else entry.generation


def find_generation(keyring: Keyring, rotation_id: str) -> Generation | None:
    """The generation that this request created; None if it has not created one yet."""
    for entry in (keyring.current, *reversed(keyring.history)):
        if entry.rotation_id == rotation_id:
            return entry
    return None


def is_same_request(
    keyring: Keyring,
    entry: Generation,
    *,
    kek: Secret | None,
    customer_key: KeyName | None = None,
    origin: RequestOrigin,
) -> bool:
    """Check that a request with this generation's id is the one that created it (SPEC 8.1).

    Another publisher of the project may send a known id with its own keys: the answer must not
    make it believe that they were accepted. If the history names no publisher, only the keys are
    compared. `kek` and `customer_key` are None where the request asks for no new one.
    """
    created_by = keyring.origin_of(entry)
    if created_by is not None and created_by.publisher != origin.publisher:
        return False
    entries = (*keyring.history, keyring.current)
    before = next((e for e in reversed(entries) if e.generation < entry.generation), None)
    new_kek_id = None if before and entry.kek_id == before.kek_id else entry.kek_id
    own = entry.customer_key
    is_new = own is not None and (before is None or own.secret_id != before.secret_id)
    new_key = own.name if own is not None and is_new else None
    return (new_kek_id, new_key) == (None if kek is None else kek_id(kek), customer_key)


def has_origin(keyring: Keyring, entry: Generation, origin: RequestOrigin) -> bool:
    """Return True if the keyring records exactly this request as the generation's origin.

    If so, the request's KEK need not be opened (impossible once its intake key was retired).
    """
    return keyring.origin_of(entry) == origin


def rotations_to_prove(keyring: Keyring) -> tuple[Generation, ...]:
    """Generations without a clean sweep since their rotation, oldest first.

    The KEK that such a rotation replaced is not cleared yet.
    """
    entries = (*keyring.history, keyring.current)
    return tuple(entry for before, entry in pairwise(entries) if before.kek is not None)


def next_serial(keyring: Keyring, recovery: str | None = None) -> Keyring:
    """Increment the serial, as every write of the record must (SPEC 5.2).

    `recovery` is the id of the request by which an operator accepted the keyring as it is; any
    other change clears it.
    """
    return replace(keyring, serial=keyring.serial + 1, recovery=recovery)


def with_lease(keyring: Keyring, lease_s: int) -> Keyring:
    """The keyring as written by a worker with this lease, in seconds (SPEC 5.2).

    The longest lease ever written is kept: a worker with that lease may still write.
    """
    return replace(keyring, lease_s=max(keyring.lease_s, lease_s))


def with_master_key(keyring: Keyring, master_key: str) -> Keyring:
    """The keyring under another master key."""
    return replace(keyring, master_key=master_key)


def forbid_plaintext(keyring: Keyring) -> Keyring:
    """The keyring after all plaintext was encrypted."""
    return replace(keyring, plaintext_allowed=False)


def retire_old_keys(keyring: Keyring) -> Keyring:
    """Clear earlier KEKs and customer secrets after a clean sweep: no wrap needs them.

    A secret that the current generation kept from an earlier one stays there.
    """
    history = tuple(
        replace(
            entry,
            kek=None,
            customer_key=None if entry.customer_key is None else entry.customer_key.cleared(),
        )
        for entry in keyring.history
    )
    return replace(keyring, history=history)


def with_evidence(keyring: Keyring, digest: str) -> Keyring:
    """The keyring with the digest of the project's newest evidence (SPEC 15.1)."""
    return replace(keyring, evidence=digest)
