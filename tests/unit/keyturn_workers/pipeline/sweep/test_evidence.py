"""Evidence says what was proven, follows the newest, is restored and never replaced (SPEC 15.1)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from keyturn.counts import Counts
from keyturn.crypto import Secret, SigningKey, customer_secret_id
from keyturn.errors import StorageUnavailableError
from keyturn.evidence import (
    MAX_EVIDENCE_BYTES,
    Evidence,
    Statement,
    parse,
    sign,
    verify_chain,
)
from keyturn.identifiers import evidence_prefix, evidence_s3_key
from keyturn_workers.core.customer_keys import CustomerKey, KeyName
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_record import State
from keyturn_workers.pipeline.sweep.evidence import EvidenceLog, counts_of, statement_of
from tests.unit.keyturn_workers.factories import turned_to
from tests.unit.keyturn_workers.pipeline.sweep.records import (
    LATER_ID,
    LEASE_S,
    NOW,
    OTHER_ID,
    ROUND_ID,
    SWEEP_ID,
    origin,
    record,
    round_of,
)
from tests.unit.keyturn_workers.pipeline.sweep.sweeping import EVENT_KEY, Sweeping

if TYPE_CHECKING:
    from keyturn_workers.core.keyring import Keyring
    from keyturn_workers.core.sweep_record import Origin, ProjectRecord

OLD_KEY = SigningKey.from_seed(bytes([1]) * 32)
NEW_KEY = SigningKey.from_seed(bytes([2]) * 32)
COUNTS = Counts(objects=5, current=4, deleted=1, rewrapped=3, encrypted=2)
ROTATION = origin("rotation", OTHER_ID, "billing")
RECORD = record(
    state=State(3, "9f86d081884c7d65", "m1", plaintext=False, serial=4), written=COUNTS.writes()
)
ROUND = round_of(
    proven=COUNTS.without_writes(),
    next_page=2,
    proven_from=NOW + timedelta(seconds=31),
    proven_to=NOW + timedelta(seconds=45),
)


def statement(
    *origins: Origin, of: ProjectRecord = RECORD, round_changes: Any = None, **changes: Any
) -> Statement:
    more: dict[str, Any] = {
        "customer_key": None,
        "previous": None,
        "previous_evidence": None,
        "key_id": EVENT_KEY.id,
        "held": frozenset({EVENT_KEY.id}),
        "late_writes_refused": True,
        "version": "0.7.0",
    }
    made = replace(ROUND, **(round_changes or {}))
    return statement_of(of, made, origins or (ROTATION,), "test", **(more | changes))


# What it says.


def test_evidence_says_what_was_proven_and_for_whom() -> None:
    part = origin("part", LATER_ID, walk_id=ROUND_ID)
    made = statement(origin(), ROTATION, part)
    predicate = made.proof
    assert (made.deployment, made.project) == ("test", "acme")
    assert (predicate.sweep_id, predicate.kind) == (ROUND_ID, "rotation")
    assert (predicate.publisher, predicate.request) == ("api", "0" * 64)
    assert predicate.origin_count == 3
    assert [(each.kind, each.id, each.publisher, each.request) for each in predicate.origins] == [
        ("sweep", SWEEP_ID, "api", "0" * 64),
        ("rotation", OTHER_ID, "billing", "0" * 64),
        ("sweep", LATER_ID, "api", "0" * 64),
    ]
    state = (predicate.generation, predicate.kek_id, predicate.master_key)
    assert state == (3, "9f86d081884c7d65", "m1")
    assert predicate.turned_at == "2026-11-24T10:00:00.000000Z"
    assert predicate.proven_from == "2026-11-24T10:00:31.000000Z"
    assert predicate.proven_to == "2026-11-24T10:00:45.000000Z"
    assert (predicate.lease_s, predicate.pages, predicate.version) == (LEASE_S, 2, "0.7.0")
    assert predicate.late_writes_refused
    assert predicate.counts.model_dump() == {**COUNTS.to_json(), "clean": True}
    assert (predicate.previous, predicate.event_keys) == (None, [])
    assert counts_of(parse(sign(made, EVENT_KEY))) == COUNTS


def test_evidence_names_the_customer_key_and_keeps_what_its_store_encrypted() -> None:
    secret = Secret(bytes(range(32)))
    key = CustomerKey.of(KeyName("acme-kms", "k1"), secret, "vault:v1:AQIDBA==")
    assert statement().proof.customer_key is None
    named = statement(customer_key=key).proof.customer_key
    assert named is not None
    assert named.model_dump() == {
        "store": "acme-kms",
        "key": "k1",
        "secret_id": key.secret_id,
        "wrapped": "vault:v1:AQIDBA==",
    }


def test_of_many_requests_the_oldest_are_named_and_all_counted() -> None:
    many = [origin("rotation", f"{SWEEP_ID[:-3]}{number:03}") for number in range(70)]
    predicate = statement(*many).proof
    assert (len(predicate.origins), predicate.origin_count) == (64, 70)
    assert predicate.origins[0].id == many[0].id


def test_the_writes_are_those_since_the_oldest_request() -> None:
    before = [replace(ROTATION, written_before=Counts(rewrapped=number)) for number in (2, 1, 3)]
    assert statement(*before).proof.counts.rewrapped == 2


def test_evidence_follows_another_and_lists_its_key() -> None:
    before = parse(sign(statement(), OLD_KEY))
    following: dict[str, Any] = {"previous": before.digest, "previous_evidence": before}
    (use,) = statement(**following).predicate.event_keys
    assert (use.keyid, use.last, use.retired) == (OLD_KEY.id, before.digest, True)
    held = frozenset({EVENT_KEY.id, OLD_KEY.id})
    predicate = statement(**following, held=held).predicate
    assert predicate.previous == before.digest
    assert not predicate.event_keys[0].retired


def test_evidence_whose_predecessor_is_lost_names_it_all_the_same() -> None:
    predicate = statement(previous="c" * 64).proof
    assert (predicate.previous, predicate.event_keys) == ("c" * 64, [])


@pytest.mark.parametrize(
    "changes",
    [
        {"proven_from": NOW + timedelta(seconds=30)},
        {"proven_from": None},
        {"proven": Counts(objects=1, failed=1)},
    ],
    ids=str,
)
def test_no_evidence_is_made_of_a_proof_that_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        statement(round_changes=changes)


# In the bucket: a project whose rounds end one after the other, each by its own worker.


class Chain:
    """The files of a project, and the keyring that names the newest."""

    def __init__(self) -> None:
        self.on = Sweeping(keys=())
        self.ring: Keyring = self.on.ring
        self.chain: list[Evidence] = []

    async def build(
        self,
        round_id: str = ROUND_ID,
        generation: int = 3,
        *,
        keys: tuple[SigningKey, ...] = (EVENT_KEY,),
        kept: str | None = None,
    ) -> Evidence:
        made = replace(RECORD, state=replace(RECORD.state, generation=generation), evidence=kept)
        built = await self.on.evidence_log(*keys).build(
            made, replace(ROUND, id=round_id), (ROTATION,), self.ring, late_writes_refused=True
        )
        return parse(built)

    async def end(
        self,
        round_id: str = ROUND_ID,
        generation: int = 3,
        *,
        keys: tuple[SigningKey, ...] = (EVENT_KEY,),
        put: bool = True,
    ) -> Evidence:
        """The round ends; without `put` its worker dies just before that."""
        evidence = await self.build(round_id, generation, keys=keys)
        generation = max(self.ring.current.generation, generation)
        current = replace(self.ring.current, generation=generation)
        self.ring = replace(self.ring, evidence=evidence.digest, current=current)
        self.chain.append(evidence)
        if put:
            await self.log.publish(evidence)
        return evidence

    def verify(self, *keys: SigningKey) -> None:
        public = [key.verify_key() for key in keys or (EVENT_KEY,)]
        verify_chain([each.envelope for each in self.chain], public, newest=self.ring.evidence)

    @property
    def log(self) -> EvidenceLog:
        return self.on.evidence_log(EVENT_KEY)

    def plant(self, s3_key: str, body: bytes = b"junk", **more: Any) -> None:
        self.on.storage.plant(s3_key, body, Headers({}), **more)

    async def stored(self, evidence: Evidence) -> bytes:
        return (await self.on.storage.read(place(evidence)))[1]

    def note_reads(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        reads, read = list[str](), self.on.storage.read

        async def noted(key: str, **how: Any) -> Any:
            reads.append(key)
            return await read(key, **how)

        monkeypatch.setattr(self.on.storage, "read", noted)
        return reads


def place(evidence: Evidence) -> str:
    predicate = evidence.proof
    return evidence_s3_key("acme", predicate.generation, predicate.sweep_id)


async def test_each_evidence_follows_the_one_that_the_keyring_names() -> None:
    on = Chain()
    for round_id, generation in ((ROUND_ID, 3), (OTHER_ID, 3), (ROUND_ID, 12)):
        await on.end(round_id, generation)
    on.verify()
    assert on.chain[0].predicate.previous is None
    assert on.on.storage.stored_keys()[:3] == [
        f"{evidence_prefix('acme')}12-{ROUND_ID}.json",
        f"{evidence_prefix('acme')}3-{OTHER_ID}.json",
        f"{evidence_prefix('acme')}3-{ROUND_ID}.json",
    ]


async def test_a_worker_with_the_old_key_alone_signs_nothing_and_retires_no_new_one() -> None:
    """While the event key is replaced, workers differ (SPEC 6.10).

    If the old key could sign once more, its worker would list the new one, which it does not hold,
    as retired: no worker that holds only the new one could end a round of the project any more.
    """
    on = Chain()
    await on.end(keys=(OLD_KEY,))
    await on.end(OTHER_ID, keys=(NEW_KEY, OLD_KEY))
    with pytest.raises(StorageUnavailableError, match="all event keys"):
        await on.build(LATER_ID, keys=(OLD_KEY,))
    assert (await on.end(LATER_ID, keys=(OLD_KEY, NEW_KEY))).key_id == NEW_KEY.id
    assert (await on.end(ROUND_ID, 4, keys=(NEW_KEY,))).key_id == NEW_KEY.id
    on.verify(OLD_KEY, NEW_KEY)


@pytest.mark.parametrize(
    ("former", "key", "wrapped", "named"),
    [
        (0, "k1", "vault:v1:AQIDBA==", 0),
        (63, "k1", "A" * 1024, 63),
        (70, "k1", "vault:v1:AQIDBA==", 64),
        (70, "k" * 2048, "A" * 1024, 29),
    ],
)
async def test_evidence_names_as_many_of_the_cleared_customer_keys_as_one_file_can(
    former: int, key: str, wrapped: str, named: int
) -> None:
    """A store chooses the length of what it encrypts."""
    on = Chain()
    secrets = [Secret(bytes([number]) * 32) for number in range(former + 1)]
    for secret in secrets:
        on.ring = turned_to(on.ring, secret, key, wrapped)
    proof = (await on.build()).proof
    ids = [each.secret_id for each in proof.former_customer_keys]
    assert ids == [customer_secret_id(each) for each in secrets[former - named : former]]
    assert proof.omitted_customer_keys == former - named
    assert ("former_customer_keys" in proof.model_dump()) is bool(former)
    assert ("omitted_customer_keys" in proof.model_dump()) is (former > named)


# The file of the one before.


async def test_a_file_that_a_worker_died_before_putting_is_restored_from_the_record() -> None:
    on = Chain()
    lost = await on.end(put=False)
    after = await on.build(OTHER_ID, kept=lost.envelope.decode())
    assert after.predicate.previous == lost.digest
    assert await on.stored(lost) == lost.envelope


async def test_a_lost_file_leaves_a_gap_that_shows_and_stops_nothing() -> None:
    on = Chain()
    first = await on.end()
    lost = await on.end(OTHER_ID, put=False)
    after = await on.build(LATER_ID, kept=first.envelope.decode())
    assert after.predicate.previous == lost.digest
    assert place(lost) not in on.on.storage.stored_keys()


async def test_files_that_are_not_the_right_ones_are_passed_over() -> None:
    """By a bucket writer: junk, evidence under another name, evidence of another deployment."""
    on = Chain()
    first = await on.end(keys=(OLD_KEY,))
    prefix = evidence_prefix("acme")
    elsewhere = EvidenceLog(on.on.storage, "other", [EVENT_KEY])
    body = await elsewhere.build(
        RECORD, replace(ROUND, id=OTHER_ID), (ROTATION,), on.on.ring, late_writes_refused=True
    )
    on.plant(f"{prefix}7-{OTHER_ID}.json", first.envelope)
    on.plant(f"{prefix}3-{OTHER_ID}.json", body)
    on.plant(f"{prefix}8-{OTHER_ID}.json", b" " * (MAX_EVIDENCE_BYTES + 1))
    on.plant(f"{prefix}9-{OTHER_ID}.json", archived=True)
    on.plant(f"{prefix}junk")
    on.ring = replace(on.ring, current=replace(on.ring.current, generation=12))
    (use,) = (await on.end(LATER_ID, 12)).predicate.event_keys
    assert use.last == first.digest


async def test_the_newest_is_read_first_and_nothing_too_large_or_of_no_generation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Names of generations that do not exist yet would only delay the end."""
    on = Chain()
    for number in range(1, 5):
        await on.end(ROUND_ID, number)
        on.on.storage.advance(1)
    newest = await on.end(OTHER_ID, 4)
    on.on.storage.advance(1)
    on.plant(f"{evidence_prefix('acme')}4-{SWEEP_ID}.json", b" " * (MAX_EVIDENCE_BYTES + 1))
    for number in range(5, 55):
        on.plant(f"{evidence_prefix('acme')}{number}-{OTHER_ID}.json")
    reads = on.note_reads(monkeypatch)
    await on.build(LATER_ID, 4)
    assert reads == [place(newest)]


# Putting.


@pytest.mark.parametrize("how", [{}, {"archived": True}])
async def test_what_is_in_the_place_of_evidence_is_replaced(how: dict[str, Any]) -> None:
    on = Chain()
    evidence = await on.end(put=False)
    on.plant(place(evidence), **how)
    await on.log.publish(evidence)
    assert await on.stored(evidence) == evidence.envelope


async def test_a_file_that_exists_is_not_written_again() -> None:
    on = Chain()
    evidence = await on.end()
    on.on.storage.fail_next("put", AssertionError("it was written again"))
    await on.log.publish(evidence)


async def test_a_place_that_keeps_changing_is_tried_again_later() -> None:
    on = Chain()
    evidence = await on.end(put=False)
    bodies = iter(range(100))

    async def changed() -> None:
        on.plant(place(evidence), str(next(bodies)).encode())

    for _ in range(20):
        on.on.storage.before_next("put", changed)
    with pytest.raises(StorageUnavailableError, match="kept changing"):
        await on.log.publish(evidence)
