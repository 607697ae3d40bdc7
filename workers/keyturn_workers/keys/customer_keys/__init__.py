"""Customer keys in the stores that the settings name (SPEC 2.6, 11).

| module | contents |
| --- | --- |
| `secrets` | the customer secrets in memory: how long each is kept, and who waits for one |
| `store_calls` | how often and how many at once a store, a key and an address are called |
| `port`, `providers` | the port to a store, and which class serves which kind |
| `awskms` | keys in AWS KMS |
| `vault` | keys in HashiCorp Vault or OpenBao |
"""
