"""Requests become origins of their project's record (SPEC 8.1, 8.5)."""

from datetime import UTC, datetime
from typing import Final

from keyturn.errors import CorruptObjectError, StorageUnavailableError, UnknownMasterKeyError
from keyturn.request_origin import RequestOrigin
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.keyring import with_master_key
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.sweep_record import (
    ALL,
    AllRecord,
    Kind,
    Origin,
    ProjectRecord,
    State,
)
from keyturn_workers.core.sweep_transitions import (
    add_origin,
    check_order,
    check_share,
    find_repeated,
    needs_step,
)
from keyturn_workers.keys.keyring.marks import (
    KeyringErasedError,
    KeyringErasingError,
)
from keyturn_workers.keys.keyring.store import replace_keyring
from keyturn_workers.keys.sweep_records import RecordT, UnknownRecordError
from keyturn_workers.pipeline.sweep.steps import SweepContext

_MAX_ATTEMPTS: Final = 8


def new_origin(
    kind: Kind,
    origin_id: str,
    requested_at: str,
    request: RequestOrigin,
    *,
    options: SweepOptions | None = None,
) -> Origin:
    """The origin of a request that was just received."""
    return Origin(
        kind,
        origin_id,
        request.publisher,
        requested_at,
        (request.request,),
        added_at=datetime.now(UTC),
        actor=request.actor,
        options=options or SweepOptions(),
    )


class SweepStarter:
    """Adds origins to records, and makes sure that they continue.

    `active_master_key` seals the record of the sweeps of all projects until a sweep names another.
    """

    def __init__(self, context: SweepContext, *, active_master_key: str) -> None:
        self._storage = context.storage
        self._keyrings = context.keyrings
        self._keys = context.keys
        self._store = context.store
        self._dispatcher = context.dispatcher
        self._active = active_master_key

    async def find(self, project: str, origin: Origin) -> Origin | None:
        """The origin that an earlier delivery of this very request added, if any.

        Raises:
            MalformedRequestError: the id was used with other options.
        """
        record = await self._find_record(project)
        return None if record is None else find_repeated(record, origin)

    async def start(self, project: str, *origins: Origin, limited: bool = False) -> Origin:
        """Make sure that the record has these origins and continues.

        A sweep that names a master key first re-seals the project's keyring under it. A repeated
        request adds its digest, and reopens its origin if a step had given up.

        Args:
            project: The project, or `*`.
            origins: Must all have the same options.
            limited: Limit the number of open sweeps of the publisher.

        Returns:
            The first of the origins, as the record has it.

        Raises:
            MalformedRequestError: the id was used with other options.
            GenerationMismatchError: a later sweep has named a master key.
            TooManyRequestsError: too many sweeps of this publisher are open.
            UnknownProjectError: no keyring exists.
            CorruptObjectError: the keyring is forged.
            UnknownMasterKeyError, KmsUnavailableError, StorageUnavailableError: try again later.
        """
        first = origins[0]
        await self._prepare(project, first, limited=limited)
        for _ in range(_MAX_ATTEMPTS):
            added = await self._add(project, origins)
            if added is not None:
                if needs_step(added):
                    await self._dispatcher.send_step(added)
                return next(each for each in added.origins if each.name == first.name)
        raise StorageUnavailableError("the project's record kept changing")

    async def _find_record(self, project: str) -> ProjectRecord | AllRecord | None:
        """The record, if any. A forged record is replaced once an origin is added."""
        try:
            return await self._store.find(project)
        except UnknownRecordError:
            raise
        except CorruptObjectError:
            return None

    async def _add(
        self, project: str, origins: tuple[Origin, ...]
    ) -> ProjectRecord | AllRecord | None:
        """Add the origins to the record; return None if it changed meanwhile."""
        try:
            if project == ALL:
                return await self._add_to_all(origins)
            stored = await self._store.read(project)
        except (MissingError, CorruptObjectError):
            return await self._create(project, origins)
        record = _with_origins(stored.record, origins)
        if record == stored.record:
            return record
        changed = await self._store.change(record, stored.etag, stored.master_key)
        return record if changed else None

    async def _add_to_all(self, origins: tuple[Origin, ...]) -> AllRecord | None:
        stored = await self._store.read_all()
        record = _with_origins(stored.record, origins)
        if record == stored.record:
            return record
        changed = await self._store.change(record, stored.etag, stored.master_key)
        return record if changed else None

    async def _create(
        self, project: str, origins: tuple[Origin, ...]
    ) -> ProjectRecord | AllRecord | None:
        record: ProjectRecord | AllRecord
        if project == ALL:
            master_key = origins[0].options.master_key or self._active
            record = _with_origins(AllRecord(), origins)
        else:
            new = await self._new_record(project)
            master_key, record = new.state.master_key, _with_origins(new, origins)
        return record if await self._store.create(record, master_key) else None

    async def _new_record(self, project: str) -> ProjectRecord:
        try:
            snapshot = await self._keyrings.read_fresh(project)
            keyring, changed_at = snapshot.keyring, snapshot.lease.read_at
        except (KeyringErasingError, KeyringErasedError) as exc:
            keyring, changed_at = exc.stored.keyring, exc.stored.read_at
        return ProjectRecord(
            project=project,
            state=State.of(keyring),
            changed_at=changed_at,
            lease_s=max(self._keyrings.lease_s, keyring.lease_s or 0),
            stepped_lease_s=self._keyrings.lease_s,
        )

    async def _prepare(self, project: str, origin: Origin, *, limited: bool) -> None:
        """Check a new origin, and re-seal the keyring under the master key that it names.

        Nothing is added for a project whose keyring is unusable. A rotation needs no check: it has
        just changed the keyring. Each part of a sweep of all checks its own project's keyring.

        The keyring is read before the record. So a delivery that stalls in between changes nothing
        if another delivery of the same request has been served, and overtaken, meanwhile.
        """
        master_key = origin.options.master_key
        if master_key is not None and master_key not in self._keys.ids:
            raise UnknownMasterKeyError(master_key)
        for _ in range(_MAX_ATTEMPTS):
            needs_keyring = project != ALL and origin.kind != "rotation"
            stored = await self._keyrings.read_record(project) if needs_keyring else None
            record = await self._find_record(project)
            if record is not None and find_repeated(record, origin) is not None:
                return
            if record is not None:
                check_order(record, origin)
                if limited:
                    check_share(record, origin.publisher)
            if stored is None:
                return
            if origin.kind == "sweep" and stored.keyring.is_erased:
                raise KeyringErasedError(stored)
            if master_key in (None, stored.keyring.master_key):
                return
            after = with_master_key(stored.keyring, str(master_key))
            lease_s = self._keyrings.lease_s
            if await replace_keyring(
                self._storage, after, stored.etag, self._keys, lease_s=lease_s
            ):
                await self._keyrings.read_record(project)  # marks the keyring
                return
        raise StorageUnavailableError("the keyring kept changing")


def _with_origins(record: RecordT, origins: tuple[Origin, ...]) -> RecordT:
    for origin in origins:
        record = add_origin(record, origin)
    return record
