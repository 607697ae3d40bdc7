"""The chain of a project's evidence (SPEC 15.1, 15.2). Pure.

Each file names the digest of the one before. A chain begins with a file that names no other, and
never forks. An event key may be replaced: each file lists the other keys that signed before it,
with the last digest of each, and which of them are retired. A retired key, which may have been
stolen since, signs nothing after the file that retires it.

A thief of a retired key can omit that file, and continue the chain before it. So unless the newest
digest is known from elsewhere, a chain must end with a file of the current event key.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from keyturn.crypto.signatures import VerifyKey
from keyturn.errors import (
    CutEvidenceError,
    EvidenceError,
    ForeignEvidenceError,
    MalformedEvidenceError,
    ReorderedEvidenceError,
    ReplayedEvidenceError,
    RetiredEventKeyError,
)
from keyturn.evidence.envelope import Evidence, parse
from keyturn.evidence.statement import ErasurePredicate, EventKeyUse, Predicate

_NOT_CURRENT: Final = (
    "no file from here on is signed by the current event key, the first public key: verify with "
    "the newest digest (--newest), which the keyring and the completion event name, or sweep the "
    "project again"
)


def verify_chain(
    files: Sequence[bytes],
    keys: Sequence[VerifyKey],
    *,
    deployment: str | None = None,
    project: str | None = None,
    newest: str | None = None,
) -> tuple[Evidence, ...]:
    """Verify the evidence of one project, from its first file on.

    Args:
        files: The bytes of all files in the order of the chain (`in_chain_order`).
        keys: The public event keys of the deployment: first the current one, then all retired ones.
        deployment: The required deployment; by default that of the first file.
        project: The required project; by default that of the first file.
        newest: The digest of the newest evidence, by the keyring or the event of the end. Without
            it, the last file must be signed by the current event key.

    Returns:
        The contents of the files, in the same order.

    Raises:
        EvidenceError: the first reason why the chain proves nothing; `index` is the file's.
    """
    chain = [_verify_file(index, envelope, keys) for index, envelope in enumerate(files)]
    if not chain:
        raise CutEvidenceError("there is no evidence")
    subject = chain[0].statement
    expected = (deployment or subject.deployment, project or subject.project)
    for index, evidence in enumerate(chain):
        if (evidence.statement.deployment, evidence.statement.project) != expected:
            raise ForeignEvidenceError("from another deployment or project", index=index)
    _verify_links(chain)
    _verify_history(chain)
    if newest is None:
        _verify_end(chain, keys[0].id)
    elif chain[-1].digest != newest:
        raise CutEvidenceError("the chain does not end with the newest evidence")
    return tuple(chain)


def _verify_file(index: int, envelope: bytes, keys: Collection[VerifyKey]) -> Evidence:
    try:
        evidence = parse(envelope)
        evidence.verify(keys)
    except EvidenceError as exc:
        exc.index = index
        raise
    return evidence


def _verify_links(chain: Sequence[Evidence]) -> None:
    """Verify that each file follows the one before, and the first follows no other."""
    digests: set[str] = set()
    followed: set[str | None] = set()
    for index, evidence in enumerate(chain):
        if evidence.predicate.previous in followed:
            is_same = evidence.digest in digests
            reason = "the same evidence twice" if is_same else "two files follow the same evidence"
            raise ReplayedEvidenceError(reason, index=index)
        digests.add(evidence.digest)
        followed.add(evidence.predicate.previous)
    for index, evidence in enumerate(chain):
        # A digest cannot be part of a circle. So a set without a gap is one chain.
        if evidence.predicate.previous not in (None, *digests):
            raise CutEvidenceError("the previous evidence is missing", index=index)
    before = None
    for index, evidence in enumerate(chain):
        if evidence.predicate.previous != before:
            raise ReorderedEvidenceError("not in the order of the chain", index=index)
        before = evidence.digest


def _verify_history(chain: Sequence[Evidence]) -> None:
    """Verify each file's statements about earlier ones: generations, and their signing keys."""
    before: Evidence | None = None
    for index, evidence in enumerate(chain):
        uses = [] if before is None else before.predicate.event_keys
        if evidence.key_id in {use.keyid for use in uses if use.retired}:
            raise RetiredEventKeyError("signed by a retired event key", index=index)
        held = {use.keyid for use in evidence.predicate.event_keys if not use.retired}
        if keys_before(before, evidence.key_id, held) != evidence.predicate.event_keys:
            raise MalformedEvidenceError(
                "event_keys does not match the earlier signing keys", index=index
            )
        if before and evidence.predicate.generation < before.predicate.generation:
            raise MalformedEvidenceError("the generation is lower than before", index=index)
        _verify_erasure(chain[:index], evidence.predicate, index)
        before = evidence


def _verify_erasure(
    before: Sequence[Evidence], predicate: Predicate | ErasurePredicate, index: int
) -> None:
    """Verify that an erasure rests on a proof in the chain, and that nothing but others follow."""
    is_erased = any(isinstance(each.predicate, ErasurePredicate) for each in before)
    if not isinstance(predicate, ErasurePredicate):
        if is_erased:
            raise MalformedEvidenceError("a rotation or a sweep after the erasure", index=index)
        return
    proofs = [each.digest for each in before if isinstance(each.predicate, Predicate)]
    if predicate.proven_by != (proofs[-1] if proofs else None):
        raise MalformedEvidenceError("proven_by is not the last proof of the chain", index=index)


def _verify_end(chain: Sequence[Evidence], current: str) -> None:
    """Verify that the current event key signed the last file, not a thief of an earlier one.

    The error names the first file without a later signature by the current key.
    """
    others = 0
    for evidence in reversed(chain):
        if evidence.key_id == current:
            break
        others += 1
    if others:
        raise RetiredEventKeyError(_NOT_CURRENT, index=len(chain) - others)


def keys_before(previous: Evidence | None, key_id: str, held: Collection[str]) -> list[EventKeyUse]:
    """Return the `event_keys` of the evidence after `previous`.

    Args:
        previous: The evidence before; None before the first one.
        key_id: The id of the event key that signs the new evidence.
        held: The ids of the event keys that may sign after it. The others are retired.
    """
    if previous is None:
        return []
    uses = {use.keyid: use for use in previous.predicate.event_keys}
    uses[previous.key_id] = EventKeyUse(keyid=previous.key_id, last=previous.digest, retired=False)
    return [
        use.model_copy(update={"retired": use.retired or keyid not in held})
        for keyid, use in sorted(uses.items())
        if keyid != key_id
    ]


def in_chain_order(files: Iterable[bytes]) -> list[bytes]:
    """Return the files in the order of their chain, as far as they form one, then the rest.

    This verifies nothing: `verify_chain` does, and reports the problem of the rest. If several
    files follow the same one, the first of them is used.

    Raises:
        MalformedEvidenceError: a file is not evidence.
    """
    parsed = [parse(envelope) for envelope in files]
    by_previous: dict[str | None, Evidence] = {}
    for evidence in parsed:
        by_previous.setdefault(evidence.predicate.previous, evidence)
    ordered: list[Evidence] = []
    while follower := by_previous.pop(ordered[-1].digest if ordered else None, None):
        ordered.append(follower)
    chained = {id(evidence) for evidence in ordered}
    rest = (evidence for evidence in parsed if id(evidence) not in chained)
    return [evidence.envelope for evidence in (*ordered, *rest)]
