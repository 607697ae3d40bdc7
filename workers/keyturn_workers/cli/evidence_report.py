"""What files of evidence say and prove, for people and as JSON (SPEC 15.1, 15.2). Pure."""

from collections.abc import Sequence
from typing import Any, Final

from keyturn.crypto import VerifyKey
from keyturn.errors import EvidenceError
from keyturn.evidence import Evidence, Predicate, verify_chain
from keyturn_workers.cli.evidence_files import EvidenceFile

COLUMNS: Final = (
    *("proven_to", "generation", "kind", "answers", "objects", "rewrapped", "state", "digest"),
)
_MAX_SHOWN: Final = 3
_UNKNOWN: Final = "not verified"
_UNPROVEN: Final = "unproven"
_VERIFIED: Final = "verified"


def evidence_row(file: EvidenceFile, state: str) -> dict[str, Any]:
    """The row of one file: what it says, and the state of its place in the chain."""
    evidence = file.evidence
    if evidence is None:
        return {"file": file.name, "state": state}
    predicate = evidence.predicate.model_dump(mode="json")
    counts = predicate.pop("counts")
    return {
        "file": file.name,
        "digest": evidence.digest,
        "state": state,
        "signed_by": evidence.key_id,
        "deployment": evidence.statement.deployment,
        "project": evidence.statement.project,
        **predicate,
        "answers": _answers(evidence.predicate),
        "objects": counts["objects"],
        "rewrapped": counts["rewrapped"],
        "counts": counts,
    }


def _answers(predicate: Predicate) -> str:
    """The rotations and sweeps that a proof answers. Evidence of 0.10 names one, as `sweep_id`."""
    ids = [origin.id for origin in predicate.origins[:_MAX_SHOWN]] or [predicate.sweep_id]
    more = predicate.origin_count - len(ids)
    return ", ".join(ids) + (f" and {more} more" if more > 0 else "")


def chain_rows(
    files: Sequence[EvidenceFile], keys: Sequence[VerifyKey], project: str
) -> tuple[list[dict[str, Any]], EvidenceError | None]:
    """A row for each file in the order of the chain, and the first error in it.

    `state` is `verified`; or the kind of the error; or `unproven`, for what comes after that
    error; or `not verified` without any key.
    """
    if not keys:
        states = [_UNKNOWN if file.evidence else "malformed" for file in files]
        return [evidence_row(*pair) for pair in zip(files, states, strict=True)], None
    verified, error = _verified_part([file.envelope for file in files], keys, project)
    states = [_VERIFIED] * verified + [_UNPROVEN] * (len(files) - verified)
    if error is not None and files:
        states[verified] = error.kind
    return [evidence_row(*pair) for pair in zip(files, states, strict=True)], error


def _verified_part(
    envelopes: Sequence[bytes], keys: Sequence[VerifyKey], project: str
) -> tuple[int, EvidenceError | None]:
    """How many files from the first one on verify, and the error of the next one."""
    error: EvidenceError | None = None
    while envelopes:
        try:
            verify_chain(envelopes, keys, project=project)
        except EvidenceError as exc:
            # A chain is checked for one kind of error after the other: an earlier file may
            # have another one.
            error = exc
            envelopes = envelopes[: exc.index or 0]
        else:
            break
    return len(envelopes), error


def proofs(chain: Sequence[Evidence]) -> list[str]:
    """What a verified chain proves, a sentence each."""
    newest = chain[-1]
    last, counts, project = newest.predicate, newest.predicate.counts, newest.statement.project
    number, deployment = _plural(counts.current, "encrypted object"), newest.statement.deployment
    state = f"generation {last.generation} (KEK id {last.kek_id}) and master key {last.master_key}"
    sentences = [
        f"At {last.proven_to}, each of the {number} of {project} was wrapped under {state}.",
        "None was left under an earlier key of the project, or under another master key.",
        f"The deployment {deployment} states this: its event key {newest.key_id} signed it.",
    ]
    if counts.deleted:
        sentences.append(f"{_plural(counts.deleted, 'deleted object')} had left a tombstone.")
    return sentences


def limits(chain: Sequence[Evidence], newest: str | None) -> list[str]:
    """What a verified chain does not prove, a sentence each."""
    last = chain[-1].predicate
    sentences = []
    if newest is None:
        sentences.append(
            "That this is the newest evidence: the keyring (`keyturn status`) and the completion "
            "event name the newest digest; check it with --newest."
        )
    if not last.late_writes_refused:
        sentences.append(
            "That there were no late writes: this storage accepts writes after their lease."
        )
    if number := last.counts.plaintext:
        verb = "is" if number == 1 else "are"
        sentences.append(f"That every object is encrypted: {number} {verb} plaintext.")
    sentences.append(
        f"What has changed since {last.proven_to}: `keyturn verify` checks the bucket itself."
    )
    return sentences


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
