"""Measure what the configured bucket does: `keyturn doctor`, and each worker's start (SPEC 10).

| module | what it holds |
| --- | --- |
| `runner` | runs the checks, and reports them |
| `checks` | the list of checks: what each means, and how much it is needed |
| `request_checks`, `key_checks`, `race_checks` | the checks: requests, keys, concurrent writers |
| `protocol` | what the probe needs of a storage, and the result of a check |
"""

from keyturn_workers.storage.probe.runner import probe

__all__ = ["probe"]
