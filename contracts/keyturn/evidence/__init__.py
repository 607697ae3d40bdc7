"""Evidence that a project's old keys are gone: its format and its verification (SPEC 15). Pure.

Each clean end of a rotation or a sweep leaves one file: a DSSE envelope around an in-toto
Statement, signed by an event key of the deployment. Each file names the digest of the one before,
so the files of a project form a chain that never forks.

    keys = [VerifyKey.from_bytes(public_key)]  # first the current one, then the retired ones
    evidence = verify_chain(in_chain_order(files), keys, deployment="default", project="acme")
    evidence[-1].predicate.proven_to

| module | what it holds |
| --- | --- |
| `statement` | `Statement` and `Predicate`: what a file says |
| `envelope` | `sign`, `parse`, `digest`, and `Evidence`: a file as it was read |
| `chain` | `verify_chain`, `in_chain_order`, and which keys signed before: `keys_before` |

All errors are `keyturn.errors.EvidenceError`s, one class for each `kind`.

What a verified chain shows: everything up to its last file. That this is the newest evidence is
shown by the keyring, or by the event of the end, which both name its digest: `verify_chain`
takes it as `newest`. Without it, the last file must be signed by the current event key.
"""

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
    MAX_ORIGINS,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    EventKeyUse,
    EvidenceCounts,
    EvidenceOrigin,
    Predicate,
    Statement,
)

__all__ = [
    "MAX_EVIDENCE_BYTES",
    "MAX_ORIGINS",
    "PAYLOAD_TYPE",
    "PREDICATE_TYPE",
    "STATEMENT_TYPE",
    "EventKeyUse",
    "Evidence",
    "EvidenceCounts",
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
