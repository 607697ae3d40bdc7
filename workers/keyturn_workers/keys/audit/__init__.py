"""The audit trail: a record of each use of the operator's key or powers (SPEC 15.3).

| module | contents |
| --- | --- |
| `trail` | `AuditTrail`: one process's identity and its chain of records, published in order |
| `requests` | `RequestRecorder`: a record for each request that a worker served or refused |

A worker records *after* the effect and *before* it acknowledges the request: after a crash in
between, the request is redelivered and recorded then. So each change is recorded at least once,
perhaps twice. A command is never redelivered, so it records *before* it acts (`started`), and
once more if it fails.

`keyturn.audit` checks a trail; commands write and read one by `cli.audit`.
"""
