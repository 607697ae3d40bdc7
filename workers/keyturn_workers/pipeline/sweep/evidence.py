"""The evidence of each project in the bucket: one file for each clean end (SPEC 8.6, 15.1).

A clean end is made in this order, and resumed at any point of it (`reconciler`):

1. The envelope, with `previous` as the keyring names it, is kept in the project's record.
2. The conditional put of the keyring names the envelope's digest. Now it is in the chain.
3. The file is put at its place.
4. The round ends in the record, which keeps the envelope until the next round's.

So the keyring decides the order of evidence, and a chain cannot fork. Before a round adds evidence
it makes sure that the previous file exists; a missing one is restored from the record.

The keyring is sealed, and names the newest digest, which names the one before, and so on. So
evidence that is reached from there is genuine, even if an attacker can write the bucket. A missing
file is reported, but does not keep a sweep from its end: a verifier of the chain sees the gap.
"""

from collections.abc import AsyncIterator, Sequence
from importlib.metadata import version
from typing import Final

import structlog

from keyturn.counts import Counts
from keyturn.crypto.signatures import SigningKey
from keyturn.errors import (
    EvidenceError,
    GenerationMismatchError,
    StorageUnavailableError,
    UnknownEventKeyError,
)
from keyturn.evidence.chain import keys_before
from keyturn.evidence.envelope import MAX_EVIDENCE_BYTES, Evidence, digest, parse, sign
from keyturn.evidence.statement import (
    MAX_ORIGINS,
    ErasedKey,
    ErasurePredicate,
    EvidenceCounts,
    EvidenceCustomerKey,
    EvidenceOrigin,
    Predicate,
    Statement,
)
from keyturn.identifiers import (
    evidence_prefix,
    evidence_s3_key,
    format_time,
    parse_evidence_name,
)
from keyturn_workers.core.customer_keys import CustomerKey
from keyturn_workers.core.erasure import Erasure
from keyturn_workers.core.errors import ArchivedError, MissingError
from keyturn_workers.core.keyring import Keyring
from keyturn_workers.core.keyring_record import customer_key_to_json
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.sweep_record import Origin, ProjectRecord, Round
from keyturn_workers.keys.keyring import sealed_records

_MAX_ATTEMPTS: Final = 8
NOT_SHOWN: Final = (
    "That no copy of the bucket has wraps from before the proof, with a keyring that opens them.",
    "That no upload ended after the proof: a storage can take long for the last bytes of one.",
    "That nobody kept a customer secret, a data key or plaintext while the keys could be used.",
    "That a store has no backup or replica of a key.",
    "That the settings named the server that has the key: another one says that it is missing.",
    "That a disabled key stays disabled, or that a deletion is not canceled.",
    "That no body is left in queues, dead letters or the staging area.",
    "That names, sizes and metadata of objects are gone: they are, once the objects are deleted.",
)
"""What the evidence of an erasure does not show (SPEC 15.1)."""

_log = structlog.get_logger()


def statement_of(
    record: ProjectRecord,
    of: Round,
    origins: Sequence[Origin],
    deployment: str,
    *,
    customer_key: CustomerKey | None,
    former_customer_keys: Sequence[CustomerKey] = (),
    omitted: int = 0,
    previous: str | None,
    previous_evidence: Evidence | None,
    key_id: str,
    held: frozenset[str],
    late_writes_refused: bool,
    version: str,
) -> Statement:
    """The statement in the evidence of a clean end. Pure.

    Args:
        record: The record of the project.
        of: The round that ends. Every page is proven.
        origins: The origins that it ends, the oldest first.
        deployment: The name of the installation.
        customer_key: That of the record's generation.
        former_customer_keys: Those that the end clears, the oldest first.
        omitted: How many of them, the oldest, are only counted: all but `MAX_ORIGINS`, or more.
        previous: The digest of the project's newest evidence, by its keyring.
        previous_evidence: That evidence; None for the first, or if its file is lost.
        key_id: The id of the event key that signs.
        held: The ids of the event keys that may sign after it.
        late_writes_refused: See `End`.
        version: The version of Keyturn.
    """
    named = [
        EvidenceOrigin(
            kind="rotation" if each.kind == "rotation" else "sweep",
            id=each.id,
            publisher=each.publisher,
            request=each.digests[0],
        )
        for each in origins
    ]
    before = min((each.written_before for each in origins), key=_writes, default=Counts())
    counts = of.counts.with_writes(record.written.writes(before))
    predicate = Predicate(
        sweep_id=of.id,
        kind="rotation" if any(each.kind == "rotation" for each in named) else "sweep",
        publisher=origins[0].publisher,
        request=origins[0].digests[0],
        origins=named[:MAX_ORIGINS],
        origin_count=len(named),
        generation=record.state.generation,
        kek_id=record.state.kek_id,
        master_key=record.state.master_key,
        customer_key=None if customer_key is None else _customer_key(customer_key),
        former_customer_keys=[_customer_key(each) for each in former_customer_keys[omitted:]],
        omitted_customer_keys=omitted,
        turned_at=format_time(record.changed_at),
        proven_from=format_time(of.proven_from or record.changed_at),
        proven_to=format_time(of.proven_to or record.changed_at),
        lease_s=record.lease_s,
        late_writes_refused=late_writes_refused,
        counts=EvidenceCounts.model_validate({**counts.to_json(), "clean": True}),
        pages=of.next_page,
        version=version,
        event_keys=keys_before(previous_evidence, key_id, held),
        previous=previous,
    )
    return Statement(deployment, record.project, predicate)


def _former_customer_keys(keyring: Keyring) -> list[CustomerKey]:
    """The customer keys that a clean end clears if no late write may need them, each once."""
    current = keyring.current.secret_id
    former = {key.secret_id: key for key in keyring.customer_keys.values()}
    return [key for secret_id, key in former.items() if secret_id != current]


def _customer_key(customer_key: CustomerKey) -> EvidenceCustomerKey:
    # Without the secret's digest, which no reader needs: unknown fields are ignored.
    return EvidenceCustomerKey.model_validate(customer_key_to_json(customer_key))


def _writes(counts: Counts) -> int:
    return counts.rewrapped + counts.encrypted


def counts_of(evidence: Evidence) -> Counts:
    """The counts in evidence; an erasure counts nothing. Pure."""
    if isinstance(evidence.predicate, ErasurePredicate):
        return Counts()
    return Counts(**evidence.predicate.counts.model_dump(exclude={"clean"}))


def _erased_keys(keyring: Keyring, erasure: Erasure) -> list[ErasedKey]:
    by_secret = {key.secret_id: key for key in keyring.customer_keys.values()}
    return [
        ErasedKey.model_validate(
            {
                **customer_key_to_json(key),
                "generations": [
                    number
                    for number, each in sorted(keyring.customer_keys.items())
                    if each.secret_id == secret_id
                ],
                "answer": erasure.answers[secret_id].state.value,
                "answered_at": erasure.answers[secret_id].at,
            }
        )
        for secret_id, key in sorted(by_secret.items())
    ]


class EvidenceLog:
    """Makes, finds and puts evidence. The first of `event_keys` signs."""

    def __init__(
        self,
        storage: Storage,
        deployment: str,
        event_keys: Sequence[SigningKey],
    ) -> None:
        self._storage = storage
        self._deployment = deployment
        self._event_keys = tuple(event_keys)
        self._version = version("keyturn-workers")

    async def build(
        self,
        record: ProjectRecord,
        of: Round,
        origins: Sequence[Origin],
        keyring: Keyring,
        *,
        late_writes_refused: bool,
    ) -> bytes:
        """The evidence of a clean end, to follow the evidence that this keyring names.

        On return, the file of the previous evidence exists, unless it is lost for good.

        Args:
            record: The record of the project.
            of: Its round. Every page is proven.
            origins: The origins that the round ends, the oldest first.
            keyring: The last one read; it shows the state that was proven.
            late_writes_refused: See `End`.

        Raises:
            StorageUnavailableError: try again, perhaps in another worker.
        """
        previous = await self._find_newest(keyring, record.evidence)
        key = self._signing_key(previous)
        former = _former_customer_keys(keyring) if late_writes_refused else []
        omitted = max(0, len(former) - MAX_ORIGINS)
        while True:
            statement = statement_of(
                record,
                of,
                origins,
                self._deployment,
                customer_key=keyring.current.customer_key,
                former_customer_keys=former,
                omitted=omitted,
                previous=keyring.evidence,
                previous_evidence=previous,
                key_id=key.id,
                # Whatever this worker holds, the keys before this one are retired. While the event
                # key is replaced, one worker's first key may be unknown to another: if both could
                # continue, each would retire the other's, and no key would be left.
                held=frozenset({key.id}),
                late_writes_refused=late_writes_refused,
                version=self._version,
            )
            envelope = sign(statement, key)
            # A store chooses the length of what it encrypts: no length may keep a round from its
            # end. Everything else is bounded far below the limit.
            if len(envelope) <= MAX_EVIDENCE_BYTES or omitted == len(former):
                return envelope
            omitted += 1

    async def build_erasure(
        self, record: ProjectRecord, origin: Origin, keyring: Keyring, erasure: Erasure
    ) -> bytes:
        """The evidence of an erasure, with the stores' answers; else as `build`.

        Raises:
            GenerationMismatchError: genuine evidence with the id of this request exists.
        """
        previous = await self._find_newest(keyring, record.evidence)
        key = self._signing_key(previous)
        predicate = ErasurePredicate(
            request_id=origin.id,
            publisher=origin.publisher,
            request=origin.digests[0],
            reason=origin.reason,
            generation=keyring.current.generation,
            keys=_erased_keys(keyring, erasure),
            proven_by=erasure.proven_by,
            not_shown=list(NOT_SHOWN),
            version=self._version,
            event_keys=keys_before(previous, key.id, frozenset({key.id})),
            previous=keyring.evidence,
        )
        envelope = sign(Statement(self._deployment, keyring.project, predicate), key)
        if await self._may_be_genuine(_s3_key(parse(envelope)), keyring):
            raise GenerationMismatchError(
                "the request's id names a file of evidence: ask again by a new request"
            )
        return envelope

    def _signing_key(self, previous: Evidence | None) -> SigningKey:
        """The first event key that the chain has not retired.

        Raises:
            StorageUnavailableError: the chain has retired all: other workers hold newer keys.
        """
        uses = [] if previous is None else previous.predicate.event_keys
        retired = {use.keyid for use in uses if use.retired}
        for key in self._event_keys:
            if key.id not in retired:
                return key
        raise StorageUnavailableError(
            "all event keys of this worker are retired: other workers have a newer one"
        )

    async def publish(self, evidence: Evidence) -> None:
        """Put the file of evidence that is in the chain, replacing anything else in its place.

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

    async def _find_newest(self, keyring: Keyring, kept: str | None) -> Evidence | None:
        """The evidence that the keyring names, restored if its file is missing."""
        wanted = keyring.evidence
        if wanted is None:
            return None
        async for each in self._files(keyring):
            if each.digest == wanted:
                return each
        if kept is None or digest(kept.encode()) != wanted:
            _log.error("evidence is missing", project=keyring.project, digest=wanted)
            return None
        evidence = parse(kept.encode())
        await self.publish(evidence)
        return evidence

    async def _files(self, keyring: Keyring) -> AsyncIterator[Evidence]:
        """The files of a project, newest generation and latest put first.

        Only their form and place are verified. Generations above the keyring's are skipped: such
        names would only delay the end.
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

    async def _may_be_genuine(self, s3_key: str, keyring: Keyring) -> bool:
        """Return False if the file is missing, or is not evidence that a worker put there."""
        found = ""
        try:
            _, body = await self._storage.read(s3_key, max_bytes=MAX_EVIDENCE_BYTES + 1)
            evidence = parse(body)
            if not self._is_at_its_place(evidence, s3_key):
                return False
            found = evidence.digest
            evidence.verify(key.verify_key() for key in self._event_keys)
        except (ArchivedError, UnknownEventKeyError):
            # Not readable, or by a key that this worker does not hold: only the chain shows it.
            pass
        except (MissingError, EvidenceError):
            return False
        else:
            return True
        previous = {each.digest: each.predicate.previous async for each in self._files(keyring)}
        wanted = keyring.evidence
        while wanted in previous and wanted != found:
            wanted = previous[wanted]
        # Behind a gap in the chain it may be genuine.
        return wanted is not None

    async def _read(self, s3_key: str) -> bytes | None:
        """The file at an S3 key, cut just above the size limit of evidence; None if missing."""
        try:
            _, body = await self._storage.read(s3_key, max_bytes=MAX_EVIDENCE_BYTES + 1)
        except (MissingError, ArchivedError):
            return None
        return body


def _s3_key(evidence: Evidence) -> str:
    predicate = evidence.predicate
    return evidence_s3_key(evidence.statement.project, predicate.generation, predicate.id)
