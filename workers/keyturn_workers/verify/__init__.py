"""The independent check of one project: what one key opens in the bucket (SPEC 15.2).

| module | what it holds |
| --- | --- |
| `object_check` | what one key opens of one object, also where labels hide it. Pure |
| `report` | what was counted and found, and the verdict. Pure |
| `project_check` | listing, reading, and how many objects at once |

It shares no code with the sweeps whose work it checks: it imports only `keyturn` (the formats)
and the storage port, which import-linter enforces. It needs one key, no keyring and no broker,
and only reads.
"""

from keyturn_workers.verify.object_check import ObjectCheck, VerificationKeys, check_object
from keyturn_workers.verify.project_check import check_project
from keyturn_workers.verify.report import Expectation, Finding, Report

__all__ = [
    "Expectation",
    "Finding",
    "ObjectCheck",
    "Report",
    "VerificationKeys",
    "check_object",
    "check_project",
]
