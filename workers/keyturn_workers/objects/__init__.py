"""One object: its wraps made, opened, verified and brought to the desired state (SPEC 4, 8.2).

Deciding is pure (`plan_action`, `verify`, `wrap`, `unwrap`, `open`, `census`); carrying out is not:

| module | what it does |
| --- | --- |
| `apply` | carries one planned action out |
| `multipart_copy` | copies a large object onto itself in parts |
| `encrypt_in_place` | the two actions that read a body: a v0 body checked, plaintext encrypted |
| `single` | brings one object to the desired state at once, for uploads and deletes |
| `download` | one object's plaintext straight from the bucket |
"""
