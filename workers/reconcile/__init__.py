"""Bring objects to the desired state: the effects of `workers.envelope.decide` (SPEC 8.2).

| module | what it does |
| --- | --- |
| `effects` | carries one decision out, by the way that fits it |
| `copying` | a large object copied onto itself in parts |
| `bodies` | the two that read a body: a v0 one checked, plaintext encrypted |
| `own` | one object brought there at once, for uploads and deletes |
"""

from workers.reconcile.effects import COPY_LIMIT_BYTES, Effects, tags_at_risk
from workers.reconcile.own import reconcile

__all__ = ["COPY_LIMIT_BYTES", "Effects", "reconcile", "tags_at_risk"]
