"""Rotations: changing the keyring once, and starting the sweep (SPEC 8.1).

The keyring records which request rotated it: however often a request comes, and in whatever
order, it rotates the keyring once. An id is recognized only with its publisher and its KEK.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from keyturn.crypto import IntakeKey, Secret, kek_info
from keyturn.errors import (
    GenerationMismatchError,
    KeyringRolledBackError,
    StorageUnavailableError,
)
from keyturn.identifiers import format_time
from keyturn.messages import RequestOrigin, RotationRequested
from keyturn_workers.keyring import (
    Generation,
    Keyring,
    KeyringReader,
    check_rotation,
    find_generation,
    has_origin,
    is_same_request,
    replace_keyring,
    rotate,
)
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.storage import Storage
from keyturn_workers.sweep import Origin, SweepStarter, new_origin
from keyturn_workers.worker.sealed_secrets import open_secret

_MAX_ATTEMPTS: Final = 8


@dataclass(frozen=True, slots=True)
class RotationResult:
    """An accepted rotation: the generation that it created, and its origin in the record."""

    generation: int
    origin: Origin


class Rotator:
    """Serves rotations against one bucket."""

    def __init__(
        self,
        storage: Storage,
        keyrings: KeyringReader,
        keys: OperatorKeys,
        intake_keys: Mapping[str, IntakeKey],
        starter: SweepStarter,
    ) -> None:
        self._storage = storage
        self._keyrings = keyrings
        self._keys = keys
        self._intake_keys = intake_keys
        self._starter = starter

    async def rotate(self, request: RotationRequested, origin: RequestOrigin) -> "RotationResult":
        """Rotate the keyring, and start the sweep.

        Raises:
            UnknownProjectError: no keyring exists.
            GenerationMismatchError, KekReusedError: this request must not rotate it.
            UnknownIntakeKeyError, BadSealError: the KEK does not open.
            CorruptObjectError: a keyring exists that no worker wrote.
            KeyringRolledBackError, StorageUnavailableError, UnknownMasterKeyError: later.
        """
        existing = await self._starter.find(request.project, _origin(request, origin))
        for _ in range(_MAX_ATTEMPTS):
            snapshot = await self._keyrings.read_fresh(request.project)
            entry = self._find_generation(snapshot.keyring, request, origin)
            if entry is not None:
                return await self._start_sweep(entry, request, origin)
            if existing is not None and existing.end is not None and existing.end.code:
                # An operator has restored a keyring without it.
                raise GenerationMismatchError(existing.end.detail)
            if existing is not None:
                raise KeyringRolledBackError("the keyring lacks a rotation that it accepted")
            after = self._rotate_keyring(snapshot.keyring, request, origin)
            # After either outcome of the race, the keyring is read again: this marks it, and says
            # which request rotated it.
            await replace_keyring(
                self._storage,
                after,
                snapshot.etag,
                self._keys,
                lease_s=self._keyrings.lease_s,
            )
        raise StorageUnavailableError("the keyring kept changing")

    async def find_rotated(
        self, request: RotationRequested, origin: RequestOrigin
    ) -> "RotationResult | None":
        """As `rotate`, if this very request rotated the keyring before; else None.

        Raises: as `rotate`.
        """
        snapshot = await self._keyrings.read_fresh(request.project)
        entry = self._find_generation(snapshot.keyring, request, origin)
        if entry is None:
            return None
        return await self._start_sweep(entry, request, origin)

    async def _start_sweep(
        self, entry: Generation, request: RotationRequested, origin: RequestOrigin
    ) -> "RotationResult":
        started = await self._starter.start(request.project, _origin(request, origin))
        return RotationResult(entry.generation, started)

    def _find_generation(
        self, keyring: Keyring, request: RotationRequested, origin: RequestOrigin
    ) -> Generation | None:
        """The generation that this request created; None if none has its id.

        Raises:
            GenerationMismatchError: another request with this id created it.
            UnknownIntakeKeyError, BadSealError: only its KEK would show that, and it does not open.
        """
        entry = find_generation(keyring, request.rotation_id)
        if entry is None:
            return None
        if has_origin(keyring, entry, origin):
            return entry
        if not is_same_request(keyring, entry, kek=self._kek(request), origin=origin):
            raise GenerationMismatchError("another request with this id rotated the keyring")
        return entry

    def _rotate_keyring(
        self, keyring: Keyring, request: RotationRequested, origin: RequestOrigin
    ) -> Keyring:
        check_rotation(
            keyring,
            requested_at=request.requested_at,
            expected_generation=request.expected_generation,
        )
        return rotate(
            keyring,
            kek=self._kek(request),
            rotation_id=request.rotation_id,
            requested_at=request.requested_at,
            at=format_time(datetime.now(UTC)),
            origin=origin,
        )

    def _kek(self, request: RotationRequested) -> Secret:
        info = kek_info("rotation", request.rotation_id, request.project)
        return Secret(open_secret(request.sealed_kek, info, self._intake_keys))


def _origin(request: RotationRequested, origin: RequestOrigin) -> Origin:
    return new_origin("rotation", request.rotation_id, request.requested_at, origin)
