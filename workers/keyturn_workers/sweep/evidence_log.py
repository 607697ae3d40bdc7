"""The evidence of each project in the bucket: one file for each clean end (SPEC 15.1).

A clean end is made in this order, and resumed at any point of it (`project_sweep`):

1. The envelope, with `previous` as the keyring names it, is kept in the sweep's record.
2. The conditional put of the keyring names its digest. From here on it is in the chain.
3. The file is put at its place.
4. The record ends.

So the keyring decides which evidence follows which, and a chain cannot fork. Before a sweep adds
evidence it makes sure that the file of the one before exists: its own worker may have died
before it put it. It is restored from the record that keeps it.

The keyring is sealed, and names the newest digest, which names the one before, and so on. So
what is reached from there is genuine, even if an attacker can write the bucket. A file that is
missing is reported, and does not keep a sweep from its end: a verifier of the chain sees the gap.
"""

from collections.abc import AsyncIterator, Sequence
from importlib.metadata import version
from typing import Final

import structlog

from keyturn.crypto import SigningKey
from keyturn.errors import (
    CorruptObjectError,
    EvidenceError,
    StorageUnavailableError,
    UnknownMasterKeyError,
)
from keyturn.evidence import (
    MAX_EVIDENCE_BYTES,
    Evidence,
    digest,
    parse,
    sign,
)
from keyturn.identifiers import (
    evidence_prefix,
    evidence_s3_key,
    parse_evidence_name,
)
from keyturn_workers.errors import ArchivedError, MissingError
from keyturn_workers.keyring import Keyring, sealed_records
from keyturn_workers.storage import Storage
from keyturn_workers.sweep.clean_end import statement_of
from keyturn_workers.sweep.plan import Plan
from keyturn_workers.sweep.sweep_store import SweepStore

_MAX_ATTEMPTS: Final = 8

_log = structlog.get_logger()


class EvidenceLog:
    """Makes, finds and puts evidence.

    Args:
        storage: The bucket.
        store: The records of sweeps, which keep evidence until its file exists.
        deployment: The name of the installation.
        event_keys: The event keys of this worker. The first one signs.
    """

    def __init__(
        self,
        storage: Storage,
        store: SweepStore,
        deployment: str,
        event_keys: Sequence[SigningKey],
    ) -> None:
        self._storage = storage
        self._store = store
        self._deployment = deployment
        self._event_keys = tuple(event_keys)
        self._version = version("keyturn-workers")

    async def build(self, plan: Plan, keyring: Keyring, *, late_writes_refused: bool) -> bytes:
        """The evidence of a clean end, to follow the one that this keyring names.

        When it returns, the file of that one exists, unless it is lost for good.

        Args:
            plan: The sweep. Every page is proven, and the dates of all are known.
            keyring: As it was read last; it shows the state that was proven.
            late_writes_refused: Whether the storage refuses writes after their lease.

        Raises:
            StorageUnavailableError: try again, perhaps in another worker.
        """
        previous = await self._find_newest(keyring)
        key = self._signing_key(previous)
        statement = statement_of(
            plan,
            self._deployment,
            previous=keyring.evidence,
            previous_evidence=previous,
            key_id=key.id,
            # Whatever this worker holds, the keys before this one are retired. While the event
            # key is replaced, one worker's first key is another's unknown one: if both could go
            # on, each would retire the other's, and no key would be left.
            held=frozenset({key.id}),
            late_writes_refused=late_writes_refused,
            version=self._version,
        )
        return sign(statement, key)

    def _signing_key(self, previous: Evidence | None) -> SigningKey:
        """The first event key that the chain does not call retired.

        Raises:
            StorageUnavailableError: it retired all of them: other workers hold newer ones.
        """
        uses = [] if previous is None else previous.predicate.event_keys
        retired = {use.keyid for use in uses if use.retired}
        for key in self._event_keys:
            if key.id not in retired:
                return key
        raise StorageUnavailableError("EVENT_KEY here was retired: other workers hold a newer one")

    async def publish(self, evidence: Evidence) -> None:
        """Put the file of evidence that is in the chain; anything else in its place is replaced.

        Raises:
            StorageUnavailableError: try again.
        """
        s3_key, envelope = _s3_key(evidence), evidence.envelope
        for _ in range(_MAX_ATTEMPTS):
            if await self._read(s3_key) == envelope:
                return
            try:
                head = await self._storage.head(s3_key)
            except MissingError:
                is_put = await sealed_records.create(self._storage, s3_key, envelope)
            else:
                _log.warning("replacing an unexpected file at the evidence path", file=s3_key)
                is_put = await sealed_records.replace(self._storage, s3_key, envelope, head.etag)
            if is_put:
                return
        raise StorageUnavailableError("the file of evidence kept changing")

    async def is_chained(self, evidence: Evidence, keyring: Keyring) -> bool:
        """Whether a keyring named this evidence, and so all later evidence follows it.

        Args:
            evidence: Evidence of a sweep, as its sealed record keeps it.
            keyring: The project's, as it was read last.
        """
        if keyring.evidence in (None, evidence.digest):
            return keyring.evidence is not None
        # Until the keyring named it, only a worker could see it.
        if await self._read(_s3_key(evidence)) == evidence.envelope:
            return True
        return await self._is_reached(evidence, keyring)

    async def find_own(self, plan: Plan, keyring: Keyring) -> Evidence | None:
        """The evidence that this very sweep left in the chain at this generation, if it did.

        Its record was removed since, and it was requested again. Its place is taken: what is in
        the chain is never replaced. What this deployment signed was put there only once it was in
        the chain, so that counts too, should the way to it have a gap.
        """
        request = plan.ask
        s3_key = evidence_s3_key(request.project, plan.state.generation, request.sweep_id)
        body = await self._read(s3_key)
        try:
            evidence = None if body is None else parse(body)
        except EvidenceError:
            return None
        if evidence is None or not self._is_at_its_place(evidence, s3_key):
            return None
        if evidence.predicate.kek_id != plan.state.kek_id:
            return None  # of a project that had this name before, with another key
        if self._is_signed(evidence) or await self._is_reached(evidence, keyring):
            return evidence
        return None

    def _is_signed(self, evidence: Evidence) -> bool:
        try:
            evidence.verify([key.verify_key() for key in self._event_keys])
        except EvidenceError:
            return False
        return True

    async def _is_reached(self, evidence: Evidence, keyring: Keyring) -> bool:
        """Whether the chain leads from the keyring to this evidence."""
        files = self._files(keyring)
        seen: dict[str, Evidence] = {}
        wanted = keyring.evidence
        while wanted is not None:
            if wanted == evidence.digest:
                return True
            while wanted not in seen:
                following = await anext(files, None)
                if following is None:
                    return False
                seen[following.digest] = following
            reached = seen[wanted]
            # Generations never fall along the chain.
            if reached.predicate.generation < evidence.predicate.generation:
                return False
            wanted = reached.predicate.previous
        return False

    async def _find_newest(self, keyring: Keyring) -> Evidence | None:
        """The evidence that the keyring names, restored if its file is missing."""
        wanted = keyring.evidence
        if wanted is None:
            return None
        async for each in self._files(keyring):
            if each.digest == wanted:
                return each
        evidence = await self._find_kept(keyring.project, wanted)
        if evidence is None:
            _log.error("evidence is missing", project=keyring.project, digest=wanted)
            return None
        await self.publish(evidence)
        return evidence

    async def _find_kept(self, project: str, wanted: str) -> Evidence | None:
        """The evidence with this digest from the record of the sweep that made it."""
        stored = [
            (changed_at, sweep_id)
            async for sweep_id, of_project, changed_at in self._store.plans()
            if of_project == project
        ]
        for _, sweep_id in sorted(stored, reverse=True):
            try:
                plan = (await self._store.read(sweep_id, project)).plan
            except (MissingError, CorruptObjectError, UnknownMasterKeyError):
                continue
            envelope = b"" if plan.envelope is None else plan.envelope.text.encode()
            if digest(envelope) == wanted:
                return parse(envelope)
        return None

    async def _files(self, keyring: Keyring) -> AsyncIterator[Evidence]:
        """The files of a project, of the newest generation first, the last ones put first.

        Nothing about them is verified but their form and their place. No generation is above the
        keyring's: such names would only delay the end.
        """
        prefix = evidence_prefix(keyring.project)
        rows = [
            (name[0], row.last_modified, row.key)
            async for row in self._storage.list(prefix)
            if (name := parse_evidence_name(row.key.removeprefix(prefix))) is not None
            and name[0] <= keyring.current.generation
            and row.size_bytes <= MAX_EVIDENCE_BYTES
        ]
        for _, _, s3_key in sorted(rows, reverse=True):
            body = await self._read(s3_key)
            if body is None:
                continue
            try:
                evidence = parse(body)
            except EvidenceError:
                continue
            if self._is_at_its_place(evidence, s3_key):
                yield evidence

    def _is_at_its_place(self, evidence: Evidence, s3_key: str) -> bool:
        return evidence.statement.deployment == self._deployment and _s3_key(evidence) == s3_key

    async def _read(self, s3_key: str) -> bytes | None:
        """What is at a place, but no more of it than evidence has; None if that is nothing."""
        try:
            _, body = await self._storage.read(s3_key, max_bytes=MAX_EVIDENCE_BYTES + 1)
        except (MissingError, ArchivedError):
            return None
        return body


def _s3_key(evidence: Evidence) -> str:
    predicate = evidence.predicate
    return evidence_s3_key(evidence.statement.project, predicate.generation, predicate.sweep_id)
