"""Changes of a keyring: rotation, new master key, end of a clean sweep (SPEC 8.1, 8.6). Pure."""

from dataclasses import replace
from itertools import pairwise

from keyturn.crypto import Secret, kek_id
from keyturn.errors import GenerationMismatchError, KekReusedError
from keyturn.identifiers import parse_time
from keyturn.messages import RequestOrigin
from keyturn_workers.keyring.model import Generation, Keyring


def check_rotation(keyring: Keyring, *, requested_at: str, expected_generation: int | None) -> None:
    """Check that a rotation may be applied to the keyring.

    Raises:
        GenerationMismatchError: it was requested before the last accepted one, or expects
            another generation.
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
    kek: Secret,
    rotation_id: str,
    requested_at: str,
    at: str,
    origin: RequestOrigin,
) -> Keyring:
    """The keyring after a user rotation: the next generation, the previous one in the history.

    `origin` is that of the rotation's request.

    Raises:
        KekReusedError: the KEK is the current one or in the history.
    """
    label = kek_id(kek)
    if label in {entry.kek_id for entry in (*keyring.history, keyring.current)}:
        raise KekReusedError("the project has or had this key")
    current = Generation(
        generation=keyring.current.generation + 1,
        kek_id=label,
        kek=kek,
        rotation_id=rotation_id,
        requested_at=requested_at,
        at=at,
    )
    return replace(
        keyring,
        current=current,
        history=(*keyring.history, replace(keyring.current, origin=keyring.origin)),
        origin=origin,
    )


def find_generation_number(keyring: Keyring, rotation_id: str) -> int | None:
    """The number of the generation that this request created; None if it created none."""
    entry = find_generation(keyring, rotation_id)
    return None if entry is None else entry.generation


def find_generation(keyring: Keyring, rotation_id: str) -> Generation | None:
    """The generation that this request created; None if it created none yet."""
    for entry in (keyring.current, *keyring.history):
        if entry.rotation_id == rotation_id:
            return entry
    return None


def is_same_request(
    keyring: Keyring, entry: Generation, *, kek: Secret, origin: RequestOrigin
) -> bool:
    """Whether a request with the id of this generation is the one that created it (SPEC 8.1).

    Another publisher of the project may send a known id with its own KEK: the response must not
    make it believe that its KEK was accepted. Where the history names no publisher, only the KEK
    decides.
    """
    created_by = keyring.origin_of(entry)
    if created_by is not None and created_by.publisher != origin.publisher:
        return False
    return entry.kek_id == kek_id(kek)


def has_origin(keyring: Keyring, entry: Generation, origin: RequestOrigin) -> bool:
    """Whether the keyring records exactly this request as the origin of the generation.

    Then the request's KEK need not be opened, which is impossible once its intake key was
    retired.
    """
    return keyring.origin_of(entry) == origin


def rotations_to_prove(keyring: Keyring) -> tuple[Generation, ...]:
    """The generations whose rotation no clean sweep has followed, the oldest first.

    The KEK that such a rotation replaced is not cleared.
    """
    entries = (*keyring.history, keyring.current)
    return tuple(entry for before, entry in pairwise(entries) if before.kek is not None)


def next_serial(keyring: Keyring, recovery: str | None = None) -> Keyring:
    """The keyring as it is written: each change counts, whatever changes (SPEC 5.2).

    `recovery` is the id of the request by which an operator accepted the keyring as it is. Any
    other change ends that.
    """
    return replace(keyring, serial=keyring.serial + 1, recovery=recovery)


def with_lease(keyring: Keyring, lease_s: int) -> Keyring:
    """The keyring as a worker with this lease, in seconds, writes it (SPEC 5.2).

    It keeps the longest lease ever written: a worker with that lease may still write.
    """
    return replace(keyring, lease_s=max(keyring.lease_s, lease_s))


def with_master_key(keyring: Keyring, master_key: str) -> Keyring:
    """The keyring under another master key."""
    return replace(keyring, master_key=master_key)


def forbid_plaintext(keyring: Keyring) -> Keyring:
    """The keyring after all plaintext was encrypted."""
    return replace(keyring, plaintext_allowed=False)


def retire_old_keys(keyring: Keyring) -> Keyring:
    """The keyring after a clean sweep: no wrap needs an earlier KEK, or v0, any longer."""
    history = tuple(replace(entry, kek=None) for entry in keyring.history)
    return replace(keyring, history=history, v0_allowed=False, v0_kek=None)


def with_evidence(keyring: Keyring, digest: str) -> Keyring:
    """The keyring with the digest of the project's newest evidence (SPEC 15.1)."""
    return replace(keyring, evidence=digest)
