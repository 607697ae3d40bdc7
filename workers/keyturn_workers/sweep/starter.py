"""Starting a sweep: its record first, its first step second (SPEC 8.1, 8.5)."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from keyturn.errors import MalformedRequestError, StorageUnavailableError, UnknownMasterKeyError
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring import (
    KeyringSnapshot,
    find_generation_number,
    replace_keyring,
    with_master_key,
)
from keyturn_workers.sweep.context import SweepContext
from keyturn_workers.sweep.effective_snapshot import effective_snapshot
from keyturn_workers.sweep.plan import (
    ALL,
    AllPlan,
    Origins,
    Plan,
    State,
    SweepRequest,
    merge_origins,
)
from keyturn_workers.sweep.sweep_store import StoredPlan

_MAX_ATTEMPTS: Final = 8


class SweepStarter:
    """Starts sweeps, or finds that they were started already.

    Args:
        context: What the parts of a sweep share.
        active_master_key: The master key that seals the records of a sweep of all projects which
            names none.
    """

    def __init__(self, context: SweepContext, *, active_master_key: str) -> None:
        self._storage = context.storage
        self._keyrings = context.keyrings
        self._keys = context.keys
        self._store = context.store
        self._dispatcher = context.dispatcher
        self._active = active_master_key

    async def find_existing(self, request: SweepRequest) -> Plan | AllPlan | None:
        """The plan of an earlier start of this very request; None if there was none.

        Raises:
            MalformedRequestError: the id was used for something else.
        """
        try:
            plan = (await self._read(request)).plan
        except MissingError:
            return None
        if replace(plan.ask, requested_at="") != replace(request, requested_at=""):
            raise MalformedRequestError("this id names another sweep")
        return plan

    async def start(
        self, request: SweepRequest, origins: Origins, *, adopting: bool = False
    ) -> Plan | AllPlan:
        """Make sure that a sweep exists and continues; returns its plan.

        A sweep that names a master key first re-seals the project's keyring under it. If the
        sweep exists already, its end is published to these requests as well.

        Args:
            request: The sweep.
            origins: The requests for it.
            adopting: Whether it is the sweep of the enrollment whose id it has.

        Raises:
            MalformedRequestError: the id was used for something else.
            UnknownProjectError: no keyring exists.
            CorruptObjectError: the keyring is forged.
            UnknownMasterKeyError, KmsUnavailableError, StorageUnavailableError: try again later.
        """
        if await self.find_existing(request) is None:
            if request.project == ALL:
                await self._create_all(request, origins)
            else:
                await self._create(request, origins, adopting=adopting)
        # The stored plan: another delivery of this request may have been faster.
        plan = await self._join(request, origins)
        if not plan.told or plan.status == "failed":
            await self._dispatcher.send_step(plan)
        return plan

    async def restart_rotation(self, rotation_id: str, project: str) -> bool:
        """Start the sweep of a rotation again whose record is gone, by what the keyring says.

        Returns False if the keyring was rotated since. Its earlier keys may be cleared: another
        sweep proved the project clean, and the rotation's own end may not have been published.

        Raises: as `start`.
        """
        keyring = (await self._keyrings.read_fresh(project)).keyring
        current = keyring.current
        if current.rotation_id != rotation_id:
            return False
        request = SweepRequest("rotation", rotation_id, project, current.requested_at)
        await self.start(request, (keyring.origin,))
        return True

    async def _join(self, request: SweepRequest, origins: Origins) -> Plan | AllPlan:
        """The plan, with these requests among those to which its end is published."""
        for _ in range(_MAX_ATTEMPTS):
            try:
                stored = await self._read(request)
            except MissingError as exc:
                raise StorageUnavailableError("the sweep's record was removed") from exc
            plan = stored.plan
            if plan.status == "done" and plan.told:
                return plan  # the caller publishes the end to this request alone
            merged = merge_origins(plan.origins, origins)
            if merged == plan.origins:
                return plan
            # A worker that publishes the end at this moment finds the record changed, and
            # publishes to the requests that were added.
            plan = replace(plan, origins=merged)
            if await self._store.change(plan, stored.etag, stored.master_key):
                return plan
        raise StorageUnavailableError("the sweep's record kept changing")

    async def _read(self, request: SweepRequest) -> StoredPlan[Plan] | StoredPlan[AllPlan]:
        if request.project == ALL:
            return await self._store.read_all(request.sweep_id)
        return await self._store.read(request.sweep_id, request.project)

    async def _create(
        self, request: SweepRequest, origins: Origins, *, adopting: bool = False
    ) -> None:
        snapshot = await effective_snapshot(
            request, await self._under_named_master_key(request), self._keys
        )
        if (
            request.kind == "sweep"
            and not adopting
            and find_generation_number(snapshot.keyring, request.sweep_id) is not None
        ):
            # The sweep of that rotation may not exist yet, and could not start once another
            # sweep's record has its id.
            raise MalformedRequestError("this id names a rotation or an enrollment")
        plan = Plan(
            ask=request,
            state=State.of(snapshot),
            turned_at=snapshot.lease.read_at,
            turn_dated=False,
            started_at=datetime.now(UTC),
            origins=origins,
            lease_s=max(snapshot.lease_s, snapshot.keyring.lease_s or 0),
            stepped_lease_s=snapshot.lease_s,
        )
        await self._store.mark_running(request)
        await self._store.create(plan, snapshot.desired.master_key)

    async def _under_named_master_key(self, request: SweepRequest) -> KeyringSnapshot:
        """A keyring snapshot under the master key that the request names, if it names one."""
        name = request.master_key
        for _ in range(_MAX_ATTEMPTS):
            snapshot = await self._keyrings.read_fresh(request.project)
            if request.dry_run or name in (None, snapshot.keyring.master_key):
                return snapshot
            after = with_master_key(snapshot.keyring, str(name))
            await replace_keyring(
                self._storage,
                after,
                snapshot.etag,
                self._keys,
                lease_s=self._keyrings.lease_s,
            )
        raise StorageUnavailableError("the keyring kept changing")

    async def _create_all(self, request: SweepRequest, origins: Origins) -> None:
        name = request.master_key or self._active
        if name not in self._keys.ids:
            raise UnknownMasterKeyError(name)
        await self._store.mark_running(request)
        plan = AllPlan(ask=request, started_at=datetime.now(UTC), origins=origins)
        await self._store.create(plan, name)
