"""A project's keyring as a value, and its changes. Pure.

See SPEC 5.2, 8.1 and 8.6. `keyring_record` is its form in the bucket.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from keyturn.crypto.keys import Secret, kek_id
from keyturn.errors import CorruptObjectError, GenerationMismatchError, KekReusedError
from keyturn.request_origin import RequestOrigin
from keyturn_workers.core.customer_keys import CustomerKey, CustomerSecrets
from keyturn_workers.core.erasure import Erasure


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
    With an `erasure` the project is being erased, or is erased: then no generation has a user KEK.
    `erasure_refused_at` is when the last refused erasure was requested. `unproven` means that
    objects may exist of which the record knows nothing, until the next clean end: an enrollment
    took them over, or an operator accepted a restored record.
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
    erasure: Erasure | None = None
    erasure_refused_at: str | None = None
    unproven: bool = False

    @property
    def is_erased(self) -> bool:
        """True if the project was erased: nothing opens, and nothing is stored, ever again."""
        return self.erasure is not None and self.erasure.is_done

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
        return {
            entry.generation: entry.customer_key
            for entry in (*self.history, self.current)
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
        is_same = earlier.keys is self.customer_keys or earlier.keys == self.customer_keys
        # The same value keeps what was derived from it: a page has hundreds of wraps.
        secrets = earlier if is_same else replace(earlier, keys=self.customer_keys)
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
        erasure=None,
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


def retire_old_keys(keyring: Keyring, *, keeps_secrets: bool = False) -> Keyring:
    """Clear earlier KEKs and customer secrets after a clean sweep: no wrap needs them.

    A secret that the current generation kept from an earlier one stays there. With `keeps_secrets`
    all stay: the storage may accept a stalled worker's copy after the proof, whose wraps need
    an earlier secret. Without a customer key, the admin KEK opens such wraps.
    """

    def retired(entry: Generation) -> Generation:
        key = entry.customer_key
        return replace(
            entry, kek=None, customer_key=key if keeps_secrets or key is None else key.cleared()
        )

    history = tuple(map(retired, keyring.history))
    return replace(keyring, history=history, unproven=False)


def with_evidence(keyring: Keyring, digest: str) -> Keyring:
    """The keyring with the digest of the project's newest evidence (SPEC 15.1)."""
    return replace(keyring, evidence=digest)
