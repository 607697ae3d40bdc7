"""`make doctor`: the probe of `keyturn doctor` on every S3 server that can be had (SPEC 10).

What was found is committed as `docs/storage-servers.json`; the tables in README.md and
docs/operations/storage-servers.md are made from it, and tests compare both with what the
servers answer.
"""
