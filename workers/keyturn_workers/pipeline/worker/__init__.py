"""One worker process: its wiring and its lifetime (SPEC 6.2, 10, 11).

| module | contents |
| --- | --- |
| `process` | a process from its settings to its end |
| `wiring` | the roles of a process and their shared parts |
| `reporter` | its reports to the broker |
"""
