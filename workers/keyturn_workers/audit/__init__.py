"""The audit trail: a record of each use of the operator's key or powers (SPEC 15.3).

| module | what it holds |
| --- | --- |
| `trail` | `AuditTrail`: one process's chain of records, published in order; who the process is |
| `requests` | `RequestRecorder`: a record for each request that a worker served or refused |

A worker records *after* the effect and *before* it acknowledges the request: a crash in between
brings the request back, and it is recorded then. So whatever changed is recorded at least once,
perhaps twice. Nothing brings a command back, so a command records *before* it acts (`started`),
and once more if that fails.

Checking one is `keyturn.audit`; commands write and read one by `cli.audit`.
"""

from keyturn_workers.audit.requests import RequestRecorder
from keyturn_workers.audit.trail import (
    AuditProcess,
    AuditPublisher,
    AuditTrail,
    KekDerived,
    log_kek_derived,
)

__all__ = [
    "AuditProcess",
    "AuditPublisher",
    "AuditTrail",
    "KekDerived",
    "RequestRecorder",
    "log_kek_derived",
]
