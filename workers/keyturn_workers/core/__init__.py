"""Decisions, without I/O. Imports `keyturn`, but no client of a broker or a storage.

| topic | modules |
| --- | --- |
| changes of an object | `plan_action`, `wraps`, `keyring`, `admin_keks`, `customer_keys` |
| keyrings | `keyring`, `keyring_record`, `keyring_requests`, `keyring_erasure`, `lost_keyring` |
| opening an object | `open_dek`, `wraps` |
| proof of a rotation | `sweep_record`, `sweep_transitions`, `sweep_proof`, `sweep_progress` |
| permissions | `authorization`, `grants` |
| destination of a source's object | `source_mapping` |
| customer keys | `customer_key_port`, `given_secrets`, `customer_key_stores`, `vault_access` |
| ports to the storage and the KEKs | `storage_port`, `storage_values`, `kek_deriver` |

Smaller: `keyring_snapshot` (one read of a keyring), `body_stream`, `storable_key`,
`sealed_secrets` (secrets sealed by publishers), `sweep_options`, `master_key_usage`,
`key_uris`, `named_settings`, `errors`, `wording`.
"""
