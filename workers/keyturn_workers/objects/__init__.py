"""One object: making, opening and verifying wraps, and reaching the desired state (SPEC 4, 8.2).

Pure: `plan_action`, `wrap`, `unwrap`, `verify`, `open_dek`, `key_usage`, `operator_keys`. The rest
does I/O:

| module | what it does |
| --- | --- |
| `apply` | executes one planned action |
| `multipart_copy` | copies a large object onto itself in parts |
| `encrypt_in_place` | the two actions that read a body: check a v0 body, encrypt plaintext |
| `guards` | rechecks keyring and object around a write |
| `reconcile` | brings one object to the desired state at once, for uploads |
| `download` | reads one object's plaintext straight from the bucket |
"""
