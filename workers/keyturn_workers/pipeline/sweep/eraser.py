"""What an erasure of a project needs next (SPEC 8.8).

The stores are asked first while the project is in use, so that no request holds up a project whose
keys work. Then the keyring is `erasing` while they are asked again, so that nothing can be stored
meanwhile that their answers do not cover. It is `erased` by the same put that names the evidence,
as at any clean end: `reconciler` makes that put, and resumes it.
"""

from dataclasses import dataclass, replace
from typing import Final

from keyturn.errors import GenerationMismatchError
from keyturn.identifiers import format_time
from keyturn_workers.core.customer_key_port import CustomerKeys
from keyturn_workers.core.erasure import Erasure
from keyturn_workers.core.keyring import Keyring
from keyturn_workers.core.keyring_erasure import (
    begin_erasure,
    check_erasable,
    check_erasure_order,
    check_held,
    judge_erasure,
    refuse_erasure,
)
from keyturn_workers.core.sweep_record import CleanEnd, Origin, ProjectRecord, State
from keyturn_workers.keys.keyring.marks import StoredKeyring
from keyturn_workers.keys.keyring.store import replace_keyring
from keyturn_workers.pipeline.sweep.steps import SweepContext

_ASK_AGAIN_S: Final = 9.0


@dataclass(frozen=True, slots=True)
class Wait:
    """The next step may follow after this many seconds."""

    seconds: float = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """The erasure was refused, and the keyring is as it was before."""

    error: GenerationMismatchError


@dataclass(frozen=True, slots=True)
class Erased:
    """The project was erased before, and the stores say what they said then."""

    evidence: str


class Eraser:
    """Makes the steps of erasures, except for the end of one that succeeds."""

    def __init__(self, context: SweepContext, customer_keys: CustomerKeys) -> None:
        self._context = context
        self._customer_keys = customer_keys
        self._evidence = context.evidence

    async def advance(
        self, record: ProjectRecord, origin: Origin, stored: StoredKeyring
    ) -> Wait | Refused | Erased | CleanEnd:
        """Make one step of an erasure; a `CleanEnd` is for the caller to keep and to finish.

        Raises:
            StorageUnavailableError, UnknownMasterKeyError, KmsUnavailableError: try again later.
        """
        erasure = stored.keyring.erasure
        if erasure is None:
            return await self._begin(stored, origin)
        is_own = (erasure.request_id, erasure.publisher) == (origin.id, origin.publisher)
        if erasure.is_done or is_own:
            return await self._judge(record, origin, stored, erasure)
        # The record that served another request is lost.
        if erasure.is_over_at(stored.read_at):
            await self._change(stored, refuse_erasure(stored.keyring, erasure.requested_at))
        return Wait(_ASK_AGAIN_S)

    async def _judge(
        self, record: ProjectRecord, origin: Origin, stored: StoredKeyring, erasure: Erasure
    ) -> Wait | Refused | Erased | CleanEnd:
        """Ask the stores, and decide by what they say."""
        keyring = stored.keyring
        states = await self._customer_keys.ask(keyring)
        # Dated after the answers: a key may have been disabled while they came.
        stored = await self._context.keyrings.read_record(record.project)
        if stored.keyring != keyring:
            return Wait()
        try:
            if not erasure.is_done:
                # The last step may be long ago, and the keyring may have been recovered since.
                check_held(erasure, stored.read_at)
                self._check(stored, origin)
            judged = judge_erasure(keyring, states, stored.read_at)
            if judged is None:
                return Wait(_ASK_AGAIN_S)
            if erasure.is_done and erasure.states == judged.states and keyring.evidence is not None:
                return Erased(keyring.evidence)
            envelope = await self._evidence.build_erasure(record, origin, keyring, judged)
        except GenerationMismatchError as exc:
            return await self._refuse(stored, origin, exc)
        return CleanEnd(envelope.decode(), State.of(keyring), (origin.name,), record.written)

    async def _begin(self, stored: StoredKeyring, origin: Origin) -> Wait | Refused:
        """Let the project wait, if its stores say now that the keys are gone."""
        keyring = stored.keyring
        # As if it had begun when it was added: for as long, stores are asked while nothing waits.
        erasure = Erasure(
            origin.id,
            origin.publisher,
            origin.digests[0],
            origin.requested_at,
            format_time(origin.added_at),
            origin.reason,
            proven_by=keyring.evidence,
        )
        try:
            self._check(stored, origin)
            states = await self._customer_keys.ask(keyring)
            judged = judge_erasure(begin_erasure(keyring, erasure), states, stored.read_at)
        except GenerationMismatchError as exc:
            return await self._refuse(stored, origin, exc)
        if judged is None:
            return Wait(_ASK_AGAIN_S)
        erasure = replace(erasure, began_at=format_time(stored.read_at))
        await self._change(stored, begin_erasure(keyring, erasure))
        return Wait()

    def _check(self, stored: StoredKeyring, origin: Origin) -> None:
        not_before = stored.read_at - self._context.keep_for
        check_erasure_order(stored.keyring, origin.requested_at, not_before)
        check_erasable(stored.keyring)

    async def _refuse(
        self, stored: StoredKeyring, origin: Origin, error: GenerationMismatchError
    ) -> Wait | Refused:
        """Refuse in the keyring first: only the keyring cannot be rolled back."""
        keyring = stored.keyring
        if not keyring.is_erased:
            refused = refuse_erasure(keyring, origin.requested_at)
            if refused != keyring and not await self._change(stored, refused):
                return Wait()
        return Refused(error)

    async def _change(self, stored: StoredKeyring, keyring: Keyring) -> bool:
        context = self._context
        return await replace_keyring(
            context.storage,
            keyring,
            stored.etag,
            context.keys,
            lease_s=context.keyrings.lease_s,
        )
