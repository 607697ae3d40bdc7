"""Rotations: the keyring turned once, and its sweep begun (SPEC 8.1).

The keyring itself remembers which request turned it: however often one comes, and in
whatever order, it turns the keyring once.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from contracts.errors import KeyringRolledBackError, StorageUnavailableError
from contracts.messages import RequestOrigin, RotationRequested
from contracts.names import format_time
from contracts.sealing import IntakeKey, Secret, kek_info
from workers.admission import open_secret
from workers.keyring import Keyring, KeyringReader, brought_by, change, check_turn, turned
from workers.storage import Storage
from workers.sweep import AllPlan, Ask, Plan, Starter

_MAX_TURNS: Final = 8


class Rotator:
    """Serves rotations against one bucket."""

    def __init__(
        self,
        storage: Storage,
        keyrings: KeyringReader,
        master_keys: Mapping[str, Secret],
        intake_keys: Mapping[str, IntakeKey],
        starter: Starter,
    ) -> None:
        self._storage = storage
        self._keyrings = keyrings
        self._master_keys = master_keys
        self._intake_keys = intake_keys
        self._starter = starter

    async def rotate(
        self, request: RotationRequested, origin: RequestOrigin
    ) -> tuple[int, Plan | AllPlan]:
        """Turn the keyring, and begin the sweep; gives the generation it brought, and the plan.

        Raises:
            UnknownProjectError: no keyring stands.
            GenerationMismatchError, KekReusedError: the keyring is not turned by this.
            UnknownIntakeKeyError, BadSealError: the KEK does not open.
            MalformedRequestError: the id was used for another sweep.
            CorruptObjectError: a keyring stands that nobody here wrote.
            KeyringRolledBackError, StorageUnavailableError, UnknownMasterKeyError: later.
        """
        ask = Ask("rotation", request.rotation_id, request.project, request.requested_at)
        begun = await self._starter.standing(ask)
        for _ in range(_MAX_TURNS):
            observed = await self._keyrings.fresh(request.project)
            generation = brought_by(observed.keyring, request.rotation_id)
            if generation is not None:
                return generation, await self._starter.start(ask)
            if begun is not None:
                raise KeyringRolledBackError("the keyring does not know a rotation that it took")
            after = self._turned(observed.keyring, request, origin)
            # Lost or won: the keyring is read again, and says who turned it.
            await change(
                self._storage,
                after,
                observed.etag,
                self._master_keys,
                lease_s=self._keyrings.lease_s,
            )
        raise StorageUnavailableError("the keyring kept changing")

    def _turned(
        self, keyring: Keyring, request: RotationRequested, origin: RequestOrigin
    ) -> Keyring:
        check_turn(
            keyring,
            requested_at=request.requested_at,
            expected_generation=request.expected_generation,
        )
        info = kek_info("rotation", request.rotation_id, request.project)
        return turned(
            keyring,
            kek=Secret(open_secret(request.sealed_kek, info, self._intake_keys)),
            rotation_id=request.rotation_id,
            requested_at=request.requested_at,
            at=format_time(datetime.now(UTC)),
            origin=origin,
        )
