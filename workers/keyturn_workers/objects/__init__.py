"""One object: making, opening and verifying wraps, and reaching the desired state (SPEC 4, 8.2).

Pure: `wraps`, `plan_action`, `open_dek`, `body_stream`, `storable_key`. The rest does I/O: `apply`
executes one planned action, `download` reads one object's plaintext straight from the bucket.
"""
