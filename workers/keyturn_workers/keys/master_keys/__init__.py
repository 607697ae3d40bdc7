"""Master keys and the KEKs derived from them (SPEC 2.2, 11).

| module | contents |
| --- | --- |
| `operator_keys` | all master keys of a process: derives a project's KEKs |
| `derived_keks`, `circuit_breaker` | how long a KEK is kept, and when its provider is called |
| `known_text` | checks that this process has the right key under an id |
| `record_format` | the format of sealed records, such as known texts and keyrings. Pure |
| `port`, `providers` | the port to a master key, and which class serves which kind |
| `local` | a key in the settings |
| `pkcs11`, `pkcs11_module` | a key on a PKCS #11 token |
| `awskms` | a key in AWS KMS |
| `vault`, `vault_client` | a key in HashiCorp Vault or OpenBao |
"""
