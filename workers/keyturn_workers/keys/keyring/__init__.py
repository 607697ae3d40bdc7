"""The keyring: the KEKs that a project's objects must be wrapped under (SPEC 5).

The keyring as a value is in `core.keyring`.

| module | contents |
| --- | --- |
| `store` | opens and writes keyrings, always by conditional put |
| `sealed_records` | sealed JSON in the bucket: keyrings, and records of sweeps |
| `reader`, `cache` | reads shared by a process, and its cached keyrings |
| `marks` | marks, and how a keyring compares with its mark |
| `mark_stream` | follows the stream of marks on the broker, and publishes to it |
"""
