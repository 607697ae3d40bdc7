"""The independent check of one project: what one key opens in the bucket (SPEC 15.2).

| module | contents |
| --- | --- |
| `object_check` | the check of one object with one key, even if labels hide a wrap. Pure |
| `report` | counts, findings and the verdict. Pure |
| `project_check` | listing, reading, and concurrency |

It shares no code with the sweeps whose work it checks: it imports only `keyturn` (the formats) and
the storage port with its values, which import-linter enforces. It needs one key, no keyring and no
broker, and only reads.
"""
