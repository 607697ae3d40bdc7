"""The content of a file of evidence: an in-toto Statement v1 about a project (SPEC 15.1). Pure.

The subject is the project at its generation, and its digest is the desired state's, so a reader can
compare it with a keyring or with `keyturn status`.
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from keyturn.errors import MalformedEvidenceError, MalformedRequestError
from keyturn.identifiers import is_project, is_short_name, parse_time
from keyturn.messages.fields import (
    Count,
    Generation,
    Reason,
    RequestDigest,
    RequestId,
    SecretId,
    ShortName,
    StoreKey,
    Time,
    WrappedSecret,
)
from keyturn.messages.json_text import as_text, load_json, problems

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "urn:keyturn:evidence:rotation:v1"
ERASURE_TYPE: Final = "urn:keyturn:evidence:erasure:v1"
MAX_EVENT_KEYS: Final = 256
MAX_ORIGINS: Final = 64
MAX_LEASE_S: Final = 10**6

KekId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
KeyId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Digest = RequestDigest


class _Model(BaseModel):
    # in-toto: readers ignore unknown fields. All fields are signed.
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", hide_input_in_errors=True)


class EvidenceCounts(_Model):
    """The counts of SPEC 8.6. Only a clean end leaves evidence."""

    objects: Count
    rewrapped: Count
    current: Count
    plaintext: Count
    encrypted: Count
    deleted: Count
    foreign: Count
    failed: Literal[0]
    noncurrent_stale: Literal[0]
    clean: Literal[True]


class EventKeyUse(_Model):
    """Another event key that signed evidence of this project before.

    Attributes:
        keyid: The id of the key (SPEC 6.10).
        last: The digest of the last evidence that it signed.
        retired: True if it was replaced. It signs nothing after this evidence.
    """

    keyid: KeyId
    last: Digest
    retired: bool


class EvidenceOrigin(_Model):
    """A request that the proof answers.

    Attributes:
        kind: Rotation or sweep. The part of a sweep of all is a sweep.
        id: The id of the rotation or the sweep.
        publisher: The publisher of the request.
        request: The SHA-256 of the request's body.
    """

    kind: Literal["rotation", "sweep"]
    id: RequestId
    publisher: ShortName
    request: Digest


class EvidenceCustomerKey(_Model):
    """A key in a KMS that the wraps need besides the project's KEKs (SPEC 2.6).

    Attributes:
        store: The KMS, by its name in the operator's settings.
        key: The key of the KMS: an AWS key's ARN, or a transit key's name.
        secret_id: The id of the customer secret.
        wrapped: The secret as the KMS encrypted it: base64 of AWS's ciphertext, or Vault's text.
    """

    store: ShortName
    key: StoreKey
    secret_id: SecretId
    wrapped: WrappedSecret


class Predicate(_Model):
    """The proof of one rotation or sweep.

    Attributes:
        sweep_id: The id of the round of pages that was the proof.
        kind: `rotation` if it answers one, `sweep` otherwise.
        publisher: The publisher that requested it first; None if its record has none.
        request: The SHA-256 of that request's body; None with `publisher`.
        origins: The requests that it answers, oldest first: at most `MAX_ORIGINS`.
        origin_count: The number of requests that it answers.
        generation: The project's generation. Every object is wrapped under its KEK.
        kek_id: The id of that KEK.
        master_key: The id of the master key. Every object is wrapped under it, too.
        customer_key: The customer key of the generation, which both wraps need; None without one.
        former_customer_keys: Those that no wrap needs any more, by this proof; at most 64.
        omitted_customer_keys: The number of older ones that the file has no room for.
        turned_at: The storage's date of the first response that showed this state.
        proven_from: The storage's date of the first observation that counts as proof.
        proven_to: The storage's date of the last one.
        lease_s: The lease in seconds. Every observation of a page is later than two leases after
            `turned_at` (SPEC 8.4).
        late_writes_refused: True if the storage refuses writes that arrive after their lease, and
            no worker saw its clocks contradict each other.
        counts: The counts of the sweep.
        pages: The number of pages in which the project was observed; 0 if it has no object.
        version: The version of Keyturn that wrote this.
        event_keys: All other event keys that signed evidence of this project before, by id.
        previous: The digest of the project's previous evidence; None in the first one.
    """

    sweep_id: RequestId
    kind: Literal["rotation", "sweep"]
    publisher: ShortName | None
    request: Digest | None
    origins: Annotated[list[EvidenceOrigin], Field(min_length=1, max_length=MAX_ORIGINS)]
    origin_count: Count
    generation: Generation
    kek_id: KekId
    master_key: ShortName
    customer_key: Annotated[
        EvidenceCustomerKey | None, Field(exclude_if=lambda value: value is None)
    ] = None
    former_customer_keys: Annotated[
        list[EvidenceCustomerKey],
        Field(max_length=MAX_ORIGINS, exclude_if=lambda value: not value),
    ] = []
    omitted_customer_keys: Annotated[Count, Field(exclude_if=lambda value: not value)] = 0
    turned_at: Time
    proven_from: Time
    proven_to: Time
    lease_s: Annotated[int, Field(ge=1, le=MAX_LEASE_S)]
    late_writes_refused: bool
    counts: EvidenceCounts
    pages: Count
    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{1,64}$")]
    event_keys: Annotated[list[EventKeyUse], Field(max_length=MAX_EVENT_KEYS)]
    previous: Digest | None

    @model_validator(mode="after")
    def _is_consistent(self) -> "Predicate":
        times = [parse_time(text) for text in (self.turned_at, self.proven_from, self.proven_to)]
        if times != sorted(times):
            raise ValueError("turned_at, proven_from and proven_to must be in this order")
        if self.pages and times[1] - times[0] <= timedelta(seconds=2 * self.lease_s):
            raise ValueError("proven_from must be later than two leases after turned_at")
        if (self.publisher is None) != (self.request is None):
            raise ValueError("publisher and request must be set together")
        _check_sorted(self.event_keys)
        return self

    @property
    def id(self) -> str:
        """The id in the name of the file."""
        return self.sweep_id

    @property
    def at(self) -> str:
        """The time of the statement, by the storage's clock."""
        return self.proven_to

    @property
    def subject(self) -> dict[str, Any]:
        """The state of the project whose digest the statement's subject has."""
        state = self.model_dump(include={"generation", "kek_id", "master_key"})
        if self.customer_key is not None:
            state["secret_id"] = self.customer_key.secret_id
        return state


class ErasedKey(EvidenceCustomerKey):
    """A customer key of an erased project, and what its store said of it (SPEC 8.8).

    Attributes:
        generations: The generations whose wraps need its secret.
        answer: Why nobody gets the secret: the key is disabled, waits for its deletion, or is
            missing.
        answered_at: When the store said so, by the clock of the S3 storage.
    """

    generations: Annotated[list[Generation], Field(min_length=1)]
    answer: Literal["disabled", "pending_deletion", "missing"]
    answered_at: Time


class ErasurePredicate(_Model):
    """The evidence that a project was erased: nobody gets the secrets that its wraps need.

    Attributes:
        request_id: The id of the request that erased it, or that asked the stores again.
        publisher: The publisher of that request.
        request: The SHA-256 of the request's body.
        reason: Why, in the words of the person who requested it.
        generation: The project's last generation.
        keys: The keys of every secret that a wrap may need, by the ids of the secrets.
        proven_by: The digest of the evidence that proved that every wrap needs one of them. None
            if the project was enrolled with its customer key, and without objects.
        not_shown: What this evidence does not show, a sentence each.
        version: The version of Keyturn that wrote this.
        event_keys: All other event keys that signed evidence of this project before, by id.
        previous: The digest of the project's previous evidence; None in the first one.
    """

    request_id: RequestId
    publisher: ShortName
    request: Digest
    reason: Reason
    generation: Generation
    keys: Annotated[list[ErasedKey], Field(min_length=1)]
    proven_by: Digest | None
    not_shown: list[str]
    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{1,64}$")]
    event_keys: Annotated[list[EventKeyUse], Field(max_length=MAX_EVENT_KEYS)]
    previous: Digest | None

    @model_validator(mode="after")
    def _is_consistent(self) -> "ErasurePredicate":
        ids = [key.secret_id for key in self.keys]
        if ids != sorted(set(ids)):
            raise ValueError("keys must be sorted by secret_id, each once")
        _check_sorted(self.event_keys)
        return self

    @property
    def id(self) -> str:
        """The id in the name of the file."""
        return self.request_id

    @property
    def at(self) -> str:
        """The time of the statement, by the storage's clock."""
        return max(key.answered_at for key in self.keys)

    @property
    def subject(self) -> dict[str, Any]:
        """The state of the project whose digest the statement's subject has."""
        return {"generation": self.generation, "erased": [key.secret_id for key in self.keys]}


def _check_sorted(uses: list[EventKeyUse]) -> None:
    ids = [use.keyid for use in uses]
    if ids != sorted(set(ids)):
        raise ValueError("event_keys must be sorted by keyid, each once")


_PREDICATES: Final[dict[str, type[Predicate | ErasurePredicate]]] = {
    PREDICATE_TYPE: Predicate,
    ERASURE_TYPE: ErasurePredicate,
}


@dataclass(frozen=True, slots=True)
class Statement:
    """The content of one file of evidence, with its project and deployment."""

    deployment: str
    project: str
    predicate: Predicate | ErasurePredicate

    @property
    def proof(self) -> Predicate:
        """The proof of a rotation or a sweep.

        Raises:
            TypeError: this is evidence of an erasure.
        """
        if not isinstance(self.predicate, Predicate):
            raise TypeError("this is evidence of an erasure")
        return self.predicate

    @property
    def subject_digest(self) -> str:
        """The SHA-256 of the canonical JSON of the project's state, in hex.

        After a rotation or a sweep this is generation, KEK id and master key id, and with a
        customer key its secret's id; after an erasure, generation and the ids of all secrets.
        """
        return hashlib.sha256(canonical_json(self.predicate.subject)).hexdigest()

    def to_payload(self) -> bytes:
        """Return the signed bytes: canonical JSON."""
        return canonical_json(
            {
                "_type": STATEMENT_TYPE,
                "subject": [self._subject()],
                "predicateType": self._predicate_type,
                "predicate": self.predicate.model_dump(mode="json"),
            }
        )

    @property
    def _predicate_type(self) -> str:
        return next(name for name, model in _PREDICATES.items() if type(self.predicate) is model)

    def _subject(self) -> dict[str, Any]:
        name = f"{self.deployment}/{self.project}"
        return {"name": name, "digest": {"sha256": self.subject_digest}}

    @classmethod
    def from_payload(cls, payload: bytes) -> "Statement":
        """Return the statement in a payload.

        Raises:
            MalformedEvidenceError: another type of statement, or its fields are not as SPEC 15.1
                requires, or the subject is not the state that the predicate names.
        """
        try:
            document = load_json(payload)
            if document.get("_type") != STATEMENT_TYPE:
                raise MalformedEvidenceError("not an in-toto Statement v1")
            model = _PREDICATES.get(as_text(document.get("predicateType")) or "")
            if model is None:
                raise MalformedEvidenceError("not evidence of a rotation, a sweep or an erasure")
            predicate = model.model_validate(document.get("predicate"))
        except MalformedRequestError as exc:
            raise MalformedEvidenceError("the statement is not strict JSON") from exc
        except ValidationError as exc:
            raise MalformedEvidenceError(problems(exc)) from None  # the cause repeats values
        deployment, project = _parse_name(document.get("subject"))
        statement = cls(deployment, project, predicate)
        if document["subject"] != [statement._subject()]:
            raise MalformedEvidenceError("the subject is not the state that the predicate names")
        return statement


def _parse_name(subject: object) -> tuple[str, str]:
    """Return the deployment and the project that the only subject names."""
    match subject:
        case [{"name": str(name)}]:
            deployment, _, project = name.partition("/")
            if is_short_name(deployment) and is_project(project):
                return deployment, project
    raise MalformedEvidenceError("the subject is not one project of a deployment")


def canonical_json(document: dict[str, Any]) -> bytes:
    """Return JSON with sorted names and no spaces: RFC 8785 for the strings and integers here."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
