"""Ingest: find the objects of sources, and request their uploads (SPEC 17.4).

A storage server's notification says where to look. A listing of each source, at the start and then
every few minutes, finds objects that no notification named. Either way the object itself is looked
up, and a request for it is published under an id that is derived from the object, so that it is
stored once, however often it was found. The upload workers do the rest, deleting included.

| module | purpose |
| --- | --- |
| `notifications` | reads storage servers' notifications; pure |
| `source_ingest` | one source: looks up an object, requests its upload, remembers the outcome |
| `importing` | requests every object of a source once, for `keyturn import` |
| `v0` | opens objects of the earlier system for an import; pure |
| `poll` | lists a source, by one worker at a time |
| `record` | the state of a source, in the bucket |
| `role` | the role `ingest` of a worker process |
"""
