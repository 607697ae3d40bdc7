"""`make doctor`: runs the probe of `keyturn doctor` on every available S3 server (SPEC 10).

The results are committed as `docs/storage-servers.json`. The table in
docs/operations/storage-servers.md is generated from it; a test compares it.
"""
