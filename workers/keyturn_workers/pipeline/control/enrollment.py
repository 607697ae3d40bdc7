"""Enrollment: create a project's first keyring (SPEC 5.4, 6.5).

One conditional put creates the keyring; all steps before it only decide whether to try. A repeated
request finds its own keyring and gets the same result.

To adopt objects whose keyring is gone, every object under the prefix counts, whatever its name:
an object whose name SPEC 1 does not allow may still be wrapped at the highest generation. An object
counts as one that does not open only if every customer secret was given that it could need.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from keyturn import metadata as object_metadata
from keyturn.crypto.intake import IntakeKey, kek_info
from keyturn.crypto.keys import Secret, kek_id
from keyturn.errors import (
    AlreadyEnrolledError,
    CustomerKeyUnavailableError,
    NoUsableWrapError,
    PermanentError,
    ProjectErasedError,
    StorageUnavailableError,
    UnknownProjectError,
)
from keyturn.identifiers import format_time, keyring_s3_key
from keyturn.messages.requests import EnrollRequested
from keyturn.request_origin import RequestOrigin
from keyturn_workers.core.customer_key_port import CustomerKeys
from keyturn_workers.core.customer_keys import CustomerKey, CustomerSecrets
from keyturn_workers.core.errors import MissingError, RefusedError
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.keyring import Generation, Keyring, check_no_plaintext
from keyturn_workers.core.keyring_requests import has_origin, is_same_request, requested_key
from keyturn_workers.core.lost_keyring import lost_generations
from keyturn_workers.core.sealed_secrets import open_secret
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.wraps import find_key_usage, past_generations
from keyturn_workers.keys.keyring.marks import KeyringRemovedError, Mark, check_has_room
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.keyring.store import create_keyring
from keyturn_workers.pipeline.sweep.starter import SweepStarter, new_origin

_FIRST_GENERATION: Final = 1

_BATCH_SIZE: Final = 64


async def find_highest_generation(
    storage: Storage, keyring: Keyring, operator_keys: KekDeriver, customer_keys: CustomerKeys
) -> int | None:
    """The highest generation whose admin wrap opens under the project's prefix.

    `keyring` is the one that is about to be put; its history has what is known of a lost one.
    0 if there are objects and none opens; None if there are no objects.
    """
    highest: int | None = None
    batch: list[str] = []

    async def highest_of_batch() -> int:
        reads = (_generation(storage, key, keyring, operator_keys, customer_keys) for key in batch)
        return max(await asyncio.gather(*reads), default=0)

    async for row in storage.list(f"{keyring.project}/"):
        batch.append(row.key)
        if len(batch) == _BATCH_SIZE:
            highest = max(highest or 0, await highest_of_batch())
            batch = []
    if batch:
        highest = max(highest or 0, await highest_of_batch())
    return highest


async def _generation(
    storage: Storage,
    s3_key: str,
    keyring: Keyring,
    operator_keys: KekDeriver,
    customer_keys: CustomerKeys,
) -> int:
    project = keyring.project
    object_key = s3_key.removeprefix(f"{project}/")
    try:
        head = await storage.head(s3_key)
    except MissingError as exc:
        # A later listing shows if it was removed (SPEC 8.6).
        raise StorageUnavailableError("an object to adopt was listed but was not found") from exc
    except RefusedError as exc:
        # It could have the highest generation: do not skip it.
        raise StorageUnavailableError("an object to adopt cannot be read") from exc

    async def open_admin_wrap(secrets: CustomerSecrets) -> int:
        keks = (await operator_keys.admin_keks(project)).with_secrets(secrets)
        # Without a keyring, the label names the generation to try, and a mark those with a secret.
        at = past_generations(keyring)
        return find_key_usage(head.metadata, project, object_key, keks, at).generation or 0

    try:
        return await customer_keys.open_with(keyring, open_admin_wrap)
    except NoUsableWrapError:
        _check_secret_known(object_key, head.metadata, keyring)
        return 0
    except PermanentError:
        return 0


def _check_secret_known(object_key: str, metadata: Mapping[str, str], keyring: Keyring) -> None:
    """Check that an object that does not open does not need a secret of which nothing is known.

    Raises:
        CustomerKeyUnavailableError: its label says that it does. A backup of the lost keyring may
            still have the secret, so the object does not count as one that opens nowhere.
    """
    envelope = object_metadata.parse(metadata)
    secret_id = envelope.secret_id if isinstance(envelope, object_metadata.Wraps) else None
    known = {key.secret_id for key in keyring.customer_keys.values()}
    if secret_id is not None and secret_id not in known:
        raise CustomerKeyUnavailableError(
            f"the object {object_key!a} needs the customer secret {secret_id}, which no mark has: "
            "restore the newest keyring, or remove the objects that need it"
        )


class Enroller:
    """Serves enrollments against one bucket, under the active master key."""

    def __init__(
        self,
        storage: Storage,
        keyrings: KeyringReader,
        operator_keys: KekDeriver,
        active_master_key: str,
        intake_keys: Mapping[str, IntakeKey],
        starter: SweepStarter,
        customer_keys: CustomerKeys,
    ) -> None:
        self._storage = storage
        self._keyrings = keyrings
        self._operator_keys = operator_keys
        self._active_master_key = active_master_key
        self._intake_keys = intake_keys
        self._starter = starter
        self._customer_keys = customer_keys

    async def enroll(self, request: EnrollRequested, origin: RequestOrigin) -> int:
        """Create the project's keyring; return its generation.

        Raises:
            AlreadyEnrolledError: another enrollment's keyring, or objects, exist.
            KeyringContradictedError: a mark contradicts the keyring, or shows that one was removed.
            UnknownIntakeKeyError, BadSealError: a KEK in the request does not open.
            CorruptObjectError: a keyring exists that no worker wrote.
            GenerationMismatchError: it allows plaintext, and the lost keyring had a customer key.
            NotPermittedError: the settings do not give the project this customer key.
            CustomerKeyRefusedError, CustomerKeyUnavailableError, StorageUnavailableError,
            UnknownMasterKeyError: try again later.
        """
        generation = await self._find_or_create(request, origin)
        await self._adopt(request, origin)
        return generation

    async def find_enrolled(self, request: EnrollRequested, origin: RequestOrigin) -> int | None:
        """As `enroll`, if this very request enrolled the project before; else None.

        Raises: as `enroll`.
        """
        generation = await self._find(request, origin)
        if generation is not None:
            await self._adopt(request, origin)
        return generation

    async def _adopt(self, request: EnrollRequested, origin: RequestOrigin) -> None:
        if request.adopt:
            # Objects may exist under other wraps; the sweep has this request's id.
            sweep = new_origin("sweep", request.request_id, request.requested_at, origin)
            await self._starter.start(request.project, sweep)

    async def _find_or_create(self, request: EnrollRequested, origin: RequestOrigin) -> int:
        """The generation of this request's keyring, which is created if there is no keyring."""
        if (existing := await self._find(request, origin)) is not None:
            return existing
        keyring = self._keyring(request, origin)
        removed = await self._find_removed(request) if request.adopt else None
        if removed is not None:
            keyring = _above(removed, keyring)
        first = await self._first_generation(request, keyring)
        if removed != await self._find_removed(request):
            raise StorageUnavailableError("the project's mark changed during the enrollment")
        customer_key = await self._customer_key(request, keyring)
        current = replace(keyring.current, generation=first, customer_key=customer_key)
        keyring = replace(keyring, current=current)
        await create_keyring(
            self._storage, keyring, self._operator_keys, lease_s=self._keyrings.lease_s
        )
        # Won or lost, read the keyring: this marks it, and shows whose it is. The response to an
        # earlier attempt of this very request may have been lost.
        if (existing := await self._find(request, origin)) is not None:
            return existing
        raise StorageUnavailableError(
            "a keyring was put, or its put refused, but no keyring exists"
        )

    async def _customer_key(self, request: EnrollRequested, keyring: Keyring) -> CustomerKey | None:
        """The first generation's customer key: a new one, or the newest of the lost keyring."""
        name = requested_key(request.customer_key)
        if name is not None:
            return await self._customer_keys.create(request.project, name)
        return keyring.history[-1].customer_key if keyring.history else None

    async def _find_removed(self, request: EnrollRequested) -> Mark | None:
        """The highest mark of a keyring that was removed, for an enrollment that adopts.

        Raises:
            KeyringRemovedError: there is such a mark, and the enrollment does not adopt.
            ProjectErasedError: the mark says that the project was erased.
        """
        await self._keyrings.catch_up()
        try:
            await self._keyrings.read_fresh(request.project)
        except UnknownProjectError:
            return None
        except KeyringRemovedError as exc:
            if exc.mark.erased:
                raise ProjectErasedError.of(request.project) from exc
            if not request.adopt:
                raise
            return exc.mark
        return None  # another enrollment was faster

    async def _find(self, request: EnrollRequested, origin: RequestOrigin) -> int | None:
        try:
            snapshot = await self._keyrings.read_own(request.project, origin)
        except UnknownProjectError:
            return None
        except KeyringRemovedError as exc:
            if not (request.adopt or exc.mark.erased):
                raise
            return None
        keyring = snapshot.keyring
        enrollment = keyring.enrollment
        if enrollment.rotation_id != request.request_id or not (
            has_origin(keyring, enrollment, origin)
            or is_same_request(
                keyring,
                enrollment,
                kek=self._kek(request),
                customer_key=requested_key(request.customer_key),
                origin=origin,
            )
        ):
            raise AlreadyEnrolledError(f"{request.project} has a keyring")
        return enrollment.generation

    async def _first_generation(self, request: EnrollRequested, keyring: Keyring) -> int:
        """The keyring's first generation: above those of the mark and of all adopted objects."""
        if request.adopt:
            highest = await find_highest_generation(
                self._storage, keyring, self._operator_keys, self._customer_keys
            )
            return max((highest or 0) + 1, keyring.current.generation)
        async for _ in self._storage.list(f"{request.project}/", limit=1):
            await self._check_not_listed(request.project)
            raise AlreadyEnrolledError(
                f"objects exist under {request.project}/ without a keyring; "
                "an enrollment with adopt takes them over"
            )
        return _FIRST_GENERATION

    async def _check_not_listed(self, project: str) -> None:
        """Check that a listing shows no keyring either.

        A wrong 404 must not refuse a repeated request: this very request may have enrolled the
        project (SPEC 8.6).

        Raises:
            StorageUnavailableError: the keyring is listed, so the read was wrong.
        """
        s3_key = keyring_s3_key(project)
        async for row in self._storage.list(s3_key, limit=1):
            if row.key == s3_key:
                raise StorageUnavailableError("the keyring is listed but was not found")

    def _keyring(self, request: EnrollRequested, origin: RequestOrigin) -> Keyring:
        kek = self._kek(request)
        first = Generation(
            generation=_FIRST_GENERATION,
            kek_id=kek_id(kek),
            kek=kek,
            rotation_id=request.request_id,
            requested_at=request.requested_at,
            at=format_time(datetime.now(UTC)),
        )
        return Keyring(
            project=request.project,
            master_key=self._active_master_key,
            current=first,
            origin=origin,
            lease_s=self._keyrings.lease_s,
            plaintext_allowed=request.plaintext == "allowed",
            unproven=request.adopt,
        )

    def _kek(self, request: EnrollRequested) -> Secret:
        info = kek_info("enroll", request.request_id, request.project)
        return Secret(open_secret(request.sealed_kek, info, self._intake_keys))


def _above(removed: Mark, keyring: Keyring) -> Keyring:
    """A first keyring above the highest mark of a lost one, with its customer keys in the history.

    Raises:
        KeyringContradictedError: no worker wrote the mark.
        GenerationMismatchError: the lost one had a customer key, and this one allows plaintext.
    """
    check_has_room(removed)
    current = replace(keyring.current, generation=removed.generation + 1)
    if removed.customer_keys:
        check_no_plaintext(keyring)
    history = lost_generations(removed.customer_keys, current, keyring.origin)
    return replace(keyring, serial=removed.serial, current=current, history=history)
