"""`make doctor`: runs the probe of `keyturn doctor` on every available S3 server (SPEC 10).

The results are committed as `docs/storage-servers.json`. The tables in
docs/operations/storage-servers.md are generated from it; tests compare them.
"""
