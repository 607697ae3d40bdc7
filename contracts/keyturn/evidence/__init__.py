"""Evidence that a project's old keys are gone: its format and its verification (SPEC 15). Pure.

Each clean end of a rotation or a sweep, and each erasure, leaves one file: a DSSE envelope around
an in-toto Statement, signed by an event key of the deployment. Each file names the digest of the
one before, so the files of a project form a chain that never forks.

    keys = [VerifyKey.from_bytes(public_key)]  # first the current one, then the retired ones
    evidence = verify_chain(in_chain_order(files), keys, deployment="default", project="acme")
    evidence[-1].predicate.at

| module | holds |
| --- | --- |
| `statement` | `Statement`, `Predicate` and `ErasurePredicate`: the content of a file |
| `envelope` | `sign`, `parse`, `digest`, and `Evidence`: a file as read |
| `chain` | `verify_chain`, `in_chain_order`, and the earlier event keys: `keys_before` |

All errors are `keyturn.errors.EvidenceError`s, one class for each `kind`.

A verified chain proves everything up to its last file. The keyring, or the event of the end, proves
that this is the newest evidence: both name its digest, which `verify_chain` accepts as `newest`.
Without it, the last file must be signed by the current event key.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyturn.evidence.chain import in_chain_order, keys_before, verify_chain
    from keyturn.evidence.envelope import (
        MAX_EVIDENCE_BYTES,
        PAYLOAD_TYPE,
        Evidence,
        digest,
        parse,
        sign,
    )
    from keyturn.evidence.statement import (
        ERASURE_TYPE,
        MAX_ORIGINS,
        PREDICATE_TYPE,
        STATEMENT_TYPE,
        ErasedKey,
        ErasurePredicate,
        EventKeyUse,
        EvidenceCounts,
        EvidenceCustomerKey,
        EvidenceOrigin,
        Predicate,
        Statement,
    )
else:
    from keyturn.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        "keyturn.evidence.chain",
        "keyturn.evidence.envelope",
        "keyturn.evidence.statement",
    )

__all__ = [
    "ERASURE_TYPE",
    "MAX_EVIDENCE_BYTES",
    "MAX_ORIGINS",
    "PAYLOAD_TYPE",
    "PREDICATE_TYPE",
    "STATEMENT_TYPE",
    "ErasedKey",
    "ErasurePredicate",
    "EventKeyUse",
    "Evidence",
    "EvidenceCounts",
    "EvidenceCustomerKey",
    "EvidenceOrigin",
    "Predicate",
    "Statement",
    "digest",
    "in_chain_order",
    "keys_before",
    "parse",
    "sign",
    "verify_chain",
]
