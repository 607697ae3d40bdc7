"""Recovery: an operator accepts a keyring that a mark contradicts, or that has none (SPEC 5.5).

Its serial goes above every mark, so that the keyring is the newest state again, and it takes over
the customer keys of the mark that it lacks: else what was wrapped by them would be lost. If it
lacks generations, its own is repeated above them. Nothing else changes. The request names the
record and the mark that the operator was shown. If either has changed, the request has no effect:
if an attacker replays it, it finds the mark of its own effect.
"""

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from keyturn.errors import (
    GenerationMismatchError,
    ProjectErasedError,
    StorageUnavailableError,
)
from keyturn.identifiers import format_time, keyring_s3_key
from keyturn.messages.requests import RecoverRequested
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.keyring import Keyring
from keyturn_workers.core.lost_keyring import take_over
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.keys.keyring.marks import Finding, Mark, Witness, check_has_room, compare
from keyturn_workers.keys.keyring.store import KEYRING_MAX_BYTES, parse_keyring, replace_keyring

_MAX_ATTEMPTS: Final = 8
# If a worker dies before it has marked the keyring that it put, its request is redelivered.
_MARKED_WITHIN: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class _Record:
    """A keyring as read; no mark vouches for it."""

    keyring: Keyring
    mark: Mark
    etag: str


class Recoverer:
    """Serves recoveries against one bucket."""

    def __init__(
        self, storage: Storage, keys: KekDeriver, witness: Witness, *, lease_s: int
    ) -> None:
        self._storage = storage
        self._keys = keys
        self._witness = witness
        self._lease_s = lease_s

    async def recover(self, request: RecoverRequested) -> Keyring:
        """Put the existing keyring again, above its mark; returns the new keyring.

        Raises:
            GenerationMismatchError: the keyring is missing, needs no recovery, or it or its mark
                is not the one that the request names, or their customer keys are at odds.
            ProjectErasedError: by its mark the project was erased, and by this keyring it was not.
            CorruptObjectError: no worker wrote the keyring.
            KeyringContradictedError: no worker wrote the mark.
            MarksUnavailableError, StorageUnavailableError, UnknownMasterKeyError,
            KmsUnavailableError: try again later.
        """
        has_put = False
        for _ in range(_MAX_ATTEMPTS):
            await self._witness.catch_up()
            record = await self._read(request.project)
            if await self._is_recovered(record, request, has_put=has_put):
                return record.keyring
            self._check(record, request)
            newest = _highest(*self._marks(request.project))
            keyring = replace(record.keyring, unproven=True)
            if newest is not None and newest.erased and not keyring.is_erased:
                raise ProjectErasedError.of(request.project)
            if newest is not None:
                check_has_room(newest, record.mark)
                keyring = take_over(
                    keyring,
                    newest.customer_keys,
                    above=newest.generation,
                    recovery=request.request_id,
                    at=format_time(datetime.now(UTC)),
                )
            serials = [mark.serial for mark in (newest, record.mark) if mark is not None]
            # Won or lost, read it again: the keyring that was put must be marked.
            has_put |= await replace_keyring(
                self._storage,
                replace(keyring, serial=max(serials)),
                record.etag,
                self._keys,
                lease_s=self._lease_s,
                recovery=request.request_id,
            )
        raise StorageUnavailableError("the keyring kept changing")

    async def find_recovered(self, request: RecoverRequested) -> Keyring | None:
        """As `recover`, if this very request put the keyring before; else None.

        Raises: as `recover`.
        """
        await self._witness.catch_up()
        record = await self._read(request.project)
        is_recovered = await self._is_recovered(record, request, has_put=False)
        return record.keyring if is_recovered else None

    async def _is_recovered(
        self, record: _Record, request: RecoverRequested, *, has_put: bool
    ) -> bool:
        """Check if this request put the keyring; mark it, if the worker that put it could not.

        If no mark is left, an old request does not mark it: after the loss of a broker it would
        bring back a keyring that was recovered once, and has been changed since.
        """
        if record.keyring.recovery != request.request_id:
            return False
        known, lost = self._marks(request.project)
        newest = _highest(known, lost)
        is_recent = datetime.now(UTC) - request.requested_at_instant < _MARKED_WITHIN
        if has_put or is_recent if newest is None else record.mark.serial > newest.serial:
            await self._witness.publish(record.keyring, record.mark)
            known, _ = self._marks(request.project)
        return known == record.mark

    async def _read(self, project: str) -> _Record:
        s3_key = keyring_s3_key(project)
        try:
            head, body = await self._storage.read(s3_key, max_bytes=KEYRING_MAX_BYTES)
        except MissingError as exc:
            async for row in self._storage.list(s3_key, limit=1):
                if row.key == s3_key:
                    detail = "the keyring is listed but was not found"
                    raise StorageUnavailableError(detail) from exc
            raise GenerationMismatchError(
                "the project has no keyring to recover: restore its newest record, or see "
                "`keyturn enroll --adopt`"
            ) from exc
        keyring = await parse_keyring(body, project, self._keys)
        digest = hashlib.sha256(body).digest()
        return _Record(keyring, Mark.of(keyring, digest), head.etag)

    def _marks(self, project: str) -> tuple[Mark | None, Mark | None]:
        table = self._witness.table
        return table.find(project), table.find_lost(project)

    def _check(self, record: _Record, request: RecoverRequested) -> None:
        """Check that the operator was shown this record, and that it needs a recovery.

        Raises:
            GenerationMismatchError: either check fails.
        """
        known, lost = self._marks(request.project)
        if lost is None and compare(record.mark, known, began_after=True) in (
            Finding.MARKED,
            Finding.UNMARKED,
        ):
            raise GenerationMismatchError("the keyring was not rolled back: nothing to recover")
        if record.mark.digest.hex() != request.digest:
            raise GenerationMismatchError(
                "the keyring's record is not the one that the request names"
            )
        named = (request.serial, request.mark)
        newest = _highest(known, lost)
        if named == _names(newest):
            return
        # The stream was replaced, and the command did not see its content. The keyring that the
        # lost mark names, or a later one, was not rolled back.
        if lost is not None and named == _names(known):
            if record.mark == lost or record.mark.serial > lost.serial:
                return
            raise GenerationMismatchError(
                f"the keyring is at serial {record.mark.serial}, and {request.project} had a mark "
                f"at {lost.serial} before the stream of marks was replaced: restore the newest "
                "record, or restart all workers, which forgets that mark"
            )
        raise GenerationMismatchError(
            "the project's highest mark is not the one that the request names: "
            + ("it has no mark" if newest is None else f"that mark is at serial {newest.serial}")
        )


def _highest(known: Mark | None, lost: Mark | None) -> Mark | None:
    marks = [mark for mark in (known, lost) if mark is not None]
    return max(marks, key=lambda mark: mark.serial, default=None)


def _names(mark: Mark | None) -> tuple[int | None, str | None]:
    """The pair by which a request names this mark."""
    return (None, None) if mark is None else (mark.serial, mark.digest.hex())
