"""Beginning a sweep: its record first, its first step second (SPEC 8.1, 8.5)."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from keyturn.errors import MalformedRequestError, StorageUnavailableError, UnknownMasterKeyError
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring import (
    KeyringReader,
    KeyringSnapshot,
    find_generation_number,
    replace_keyring,
    with_master_key,
)
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.storage import Storage
from keyturn_workers.sweep.effective_state import wanted
from keyturn_workers.sweep.outbox import Outbox
from keyturn_workers.sweep.plan import ALL, AllPlan, Origins, Plan, State, SweepRequest, joined
from keyturn_workers.sweep.store import Standing, SweepStore

_MAX_TURNS: Final = 8


class Starter:
    """Begins sweeps, or finds that they were begun already.

    The records of a sweep of all that names no master key stand under the active one.
    """

    def __init__(
        self,
        storage: Storage,
        keyrings: KeyringReader,
        keys: OperatorKeys,
        store: SweepStore,
        outbox: Outbox,
        *,
        active_master_key: str,
    ) -> None:
        self._storage = storage
        self._keyrings = keyrings
        self._keys = keys
        self._store = store
        self._outbox = outbox
        self._active = active_master_key

    async def standing(self, ask: SweepRequest) -> Plan | AllPlan | None:
        """The plan of an earlier start of this very request, or None.

        Raises:
            MalformedRequestError: the id was used for something else.
        """
        try:
            plan = (await self._read(ask)).plan
        except MissingError:
            return None
        if replace(plan.ask, requested_at="") != replace(ask, requested_at=""):
            raise MalformedRequestError("this id names another sweep")
        return plan

    async def start(
        self, ask: SweepRequest, origins: Origins, *, adopting: bool = False
    ) -> Plan | AllPlan:
        """Make sure that a sweep exists and goes on; gives its plan.

        A sweep that names a master key first re-seals the project's keyring under it. One that
        exists already is theirs as well who ask for it now: its end is published to them too.

        Args:
            ask: The sweep.
            origins: The requests that ask for it.
            adopting: It is the sweep of the enrolment whose id it bears.

        Raises:
            MalformedRequestError: the id was used for something else.
            UnknownProjectError: no keyring stands.
            CorruptObjectError: the keyring was forged.
            UnknownMasterKeyError, StorageUnavailableError: try again later.
        """
        if await self.standing(ask) is None:
            if ask.project == ALL:
                await self._create_all(ask, origins)
            else:
                await self._create(ask, origins, adopting=adopting)
        # As it stands: another copy of this request may have been faster.
        plan = await self._join(ask, origins)
        if not plan.told or plan.status == "failed":
            await self._outbox.step(plan)
        return plan

    async def begin_again(self, rotation_id: str, project: str) -> bool:
        """Begin a rotation's sweep anew whose record is gone, by what the keyring says of it.

        False where the keyring has turned since. Its earlier keys may be cleared: another sweep
        proved the project clean, and the rotation's own end may not have been published.

        Raises: as `start`.
        """
        keyring = (await self._keyrings.read_fresh(project)).keyring
        current = keyring.current
        if current.rotation_id != rotation_id:
            return False
        ask = SweepRequest("rotation", rotation_id, project, current.requested_at)
        await self.start(ask, (keyring.origin,))
        return True

    async def _join(self, ask: SweepRequest, origins: Origins) -> Plan | AllPlan:
        """The plan, with these requests among those to which its end is published."""
        for _ in range(_MAX_TURNS):
            try:
                standing = await self._read(ask)
            except MissingError as exc:
                raise StorageUnavailableError("the sweep's record was removed") from exc
            plan = standing.plan
            if plan.status == "done" and plan.told:
                return plan  # its caller answers this request alone
            every = joined(plan.origins, origins)
            if every == plan.origins:
                return plan
            # Whoever publishes the end at this moment finds the record changed, and comes again.
            plan = replace(plan, origins=every)
            if await self._store.change(plan, standing.etag, standing.master_key):
                return plan
        raise StorageUnavailableError("the sweep's record kept changing")

    async def _read(self, ask: SweepRequest) -> Standing[Plan] | Standing[AllPlan]:
        if ask.project == ALL:
            return await self._store.read_all(ask.sweep_id)
        return await self._store.read(ask.sweep_id, ask.project)

    async def _create(self, ask: SweepRequest, origins: Origins, *, adopting: bool = False) -> None:
        observed = wanted(ask, await self._under_its_master_key(ask), self._keys.master_keys)
        if (
            ask.kind == "sweep"
            and not adopting
            and find_generation_number(observed.keyring, ask.sweep_id) is not None
        ):
            # Its own sweep may not exist yet, and could not begin under another one's record.
            raise MalformedRequestError("this id names a rotation or an enrolment")
        plan = Plan(
            ask=ask,
            state=State.of(observed),
            turned_at=observed.lease.read_at,
            turn_dated=False,
            started_at=datetime.now(UTC),
            origins=origins,
            lease_s=max(observed.lease_s, observed.keyring.lease_s or 0),
            stepped_lease_s=observed.lease_s,
        )
        await self._store.mark_running(ask)
        await self._store.create(plan, observed.desired.master_key)

    async def _under_its_master_key(self, ask: SweepRequest) -> KeyringSnapshot:
        """A keyring read that shows the master key that the sweep names, if it names one."""
        name = ask.master_key
        for _ in range(_MAX_TURNS):
            observed = await self._keyrings.read_fresh(ask.project)
            if ask.dry_run or name in (None, observed.keyring.master_key):
                return observed
            after = with_master_key(observed.keyring, str(name))
            await replace_keyring(
                self._storage,
                after,
                observed.etag,
                self._keys.master_keys,
                lease_s=self._keyrings.lease_s,
            )
        raise StorageUnavailableError("the keyring kept changing")

    async def _create_all(self, ask: SweepRequest, origins: Origins) -> None:
        name = ask.master_key or self._active
        if name not in self._keys.master_keys:
            raise UnknownMasterKeyError(name)
        await self._store.mark_running(ask)
        plan = AllPlan(ask=ask, started_at=datetime.now(UTC), origins=origins)
        await self._store.create(plan, name)
