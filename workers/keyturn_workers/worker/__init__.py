"""One worker process: its wiring, its life, and what it measures (SPEC 6.2, 10, 11).

| module | what it holds |
| --- | --- |
| `process` | a process from its settings to its end |
| `wiring` | the roles of a process, and what they share |
| `authorization`, `grants` | who may request what, and how changes to it are followed |
| `sealed_secrets` | opens what publishers seal to the workers |
| `metrics`, `health`, `reporter` | what it measures; its health checks; its reports to the broker |
| `logging` | structured logs |
| `runtime` | settings of the kernel and the interpreter |
"""
