"""Keys, and the records that are sealed under them.

| module | contents |
| --- | --- |
| `keyring` | the keyrings of projects, and their marks |
| `master_keys` | master keys and the KEKs derived from them |
| `customer_keys` | customer keys in their stores, and the secrets that they give |
| `audit` | a record of each use of the operator's key or powers |
| `sweep_records` | the records of sweeps in the bucket |
"""
