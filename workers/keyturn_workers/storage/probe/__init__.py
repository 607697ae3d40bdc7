"""Measures the configured bucket: `keyturn doctor`, and each worker's start (SPEC 10).

| module | contents |
| --- | --- |
| `runner` | runs the checks, and reports them |
| `checks` | the list of checks, each with its need and its consequence |
| `request_checks`, `key_checks`, `race_checks` | the checks: requests, keys, concurrent writers |
| `protocol` | the probe's own storage operations, and the result of a check |
"""
