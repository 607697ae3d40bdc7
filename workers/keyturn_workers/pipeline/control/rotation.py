"""Rotations: change the keyring once, and start the sweep (SPEC 8.1).

The keyring records the requests that rotated it: a request rotates it once, however often and in
whatever order requests come. An id is recognized only with its publisher and its keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from keyturn.crypto.intake import IntakeKey, kek_info
from keyturn.crypto.keys import Secret
from keyturn.errors import (
    GenerationMismatchError,
    KeyringRolledBackError,
    StorageUnavailableError,
)
from keyturn.identifiers import format_time
from keyturn.messages.requests import RotationRequested
from keyturn.request_origin import RequestOrigin
from keyturn_workers.core.customer_key_port import CustomerKeys
from keyturn_workers.core.customer_keys import CustomerKey
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.keyring import (
    Generation,
    Keyring,
    check_new_kek,
    check_no_plaintext,
    rotate,
)
from keyturn_workers.core.keyring_requests import (
    check_rotation,
    find_generation,
    has_origin,
    is_same_request,
    requested_key,
)
from keyturn_workers.core.sealed_secrets import open_secret
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.sweep_record import Origin
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.keyring.store import replace_keyring
from keyturn_workers.pipeline.sweep.starter import SweepStarter, new_origin

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
        keys: KekDeriver,
        intake_keys: Mapping[str, IntakeKey],
        starter: SweepStarter,
        customer_keys: CustomerKeys,
    ) -> None:
        self._storage = storage
        self._keyrings = keyrings
        self._keys = keys
        self._intake_keys = intake_keys
        self._starter = starter
        self._customer_keys = customer_keys

    async def rotate(self, request: RotationRequested, origin: RequestOrigin) -> "RotationResult":
        """Rotate the keyring, and start the sweep.

        Raises:
            UnknownProjectError: no keyring exists.
            GenerationMismatchError, KekReusedError: this request must not rotate the keyring.
            UnknownIntakeKeyError, BadSealError: the KEK does not open.
            CorruptObjectError: a keyring exists that no worker wrote.
            NotPermittedError: the settings do not give the project this customer key.
            CustomerKeyRefusedError, CustomerKeyUnavailableError, KeyringRolledBackError,
            StorageUnavailableError, UnknownMasterKeyError: later.
        """
        customer_key: CustomerKey | None = None
        existing = await self._starter.find(request.project, _origin(request, origin))
        for _ in range(_MAX_ATTEMPTS):
            snapshot = await self._keyrings.read_fresh(request.project)
            entry = self._find_generation(snapshot.keyring, request, origin)
            if entry is not None:
                return await self._start_sweep(entry, request, origin)
            if existing is not None and existing.end is not None and existing.end.code:
                # An operator has restored a keyring without this generation.
                raise GenerationMismatchError(existing.end.detail)
            if existing is not None:
                raise KeyringRolledBackError("the keyring lacks a rotation that it accepted")
            self._check(snapshot.keyring, request)
            # A put that loses a race may be made again with the same secret, at another generation:
            # nothing was wrapped by it yet, or the request's generation had been found. A secret
            # may serve several generations anyway, since each wrap is bound to its own. A new
            # secret for each put would cost more calls, and lose each race while a store is slow.
            customer_key = customer_key or await self._create_customer_key(request)
            after = self._rotate_keyring(snapshot.keyring, request, origin, customer_key)
            # Won or lost, read the keyring again: this marks it, and shows which request rotated
            # it.
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
        """The generation that this request created; None if no generation has its id.

        Raises:
            GenerationMismatchError: another request with this id created it.
            UnknownIntakeKeyError, BadSealError: the KEK, which would show that, does not open.
        """
        entry = find_generation(keyring, request.rotation_id)
        if entry is None:
            return None
        if has_origin(keyring, entry, origin):
            return entry
        if not is_same_request(
            keyring,
            entry,
            kek=self._kek(request),
            customer_key=requested_key(request.customer_key),
            origin=origin,
        ):
            raise GenerationMismatchError("another request with this id rotated the keyring")
        return entry

    def _check(self, keyring: Keyring, request: RotationRequested) -> None:
        """Check all that needs no store, before one is asked for a secret (SPEC 8.1)."""
        check_rotation(
            keyring,
            requested_at=request.requested_at,
            expected_generation=request.expected_generation,
        )
        kek = self._kek(request)
        if kek is not None:
            check_new_kek(keyring, kek)
        if request.customer_key is not None:
            check_no_plaintext(keyring)

    async def _create_customer_key(self, request: RotationRequested) -> CustomerKey | None:
        name = requested_key(request.customer_key)
        return None if name is None else await self._customer_keys.create(request.project, name)

    def _rotate_keyring(
        self,
        keyring: Keyring,
        request: RotationRequested,
        origin: RequestOrigin,
        customer_key: CustomerKey | None,
    ) -> Keyring:
        return rotate(
            keyring,
            kek=self._kek(request),
            customer_key=customer_key,
            rotation_id=request.rotation_id,
            requested_at=request.requested_at,
            at=format_time(datetime.now(UTC)),
            origin=origin,
        )

    def _kek(self, request: RotationRequested) -> Secret | None:
        if request.sealed_kek is None:
            return None
        info = kek_info("rotation", request.rotation_id, request.project)
        return Secret(open_secret(request.sealed_kek, info, self._intake_keys))


def _origin(request: RotationRequested, origin: RequestOrigin) -> Origin:
    return new_origin("rotation", request.rotation_id, request.requested_at, origin)
