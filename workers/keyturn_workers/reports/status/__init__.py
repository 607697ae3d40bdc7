"""The only reader of state for people: a view, a filter, an order, a page (SPEC 8.6, 16.1).

Control workers answer `status.requested` with it, and commands call it in process. It opens records
and wraps with the operator's master keys, changes nothing, and never returns a key, a wrap or a
DEK.

| module | contents |
| --- | --- |
| `reader` | `StatusReader`: the report that a `status.requested` asks for |
| `query` | filters, orders and pages rows |
| `index` | rows of all keyrings and sweeps, renewed by listings |
| `rows` | keyrings, and the origins of records of sweeps, as rows |
| `records` | opens listed records, a few at a time |
| `sweeps` | one sweep with its parts, and its failures |
| `evidence` | the evidence of one project |
| `key_usage` | the view `objects`: which key each object and record depends on |
| `workers`, `audit` | the state of workers by their reports, and the audit trail |
| `feeds` | reads both, and queue depths, from the broker |
| `dead_letters` | the oldest letters of each dead-letter queue |
| `attention` | rules that find problems for a person |
"""
