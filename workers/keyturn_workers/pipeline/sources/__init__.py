"""Buckets that objects are ingested from (SPEC 17).

| module | purpose |
| --- | --- |
| `port` | the sources as an upload uses them; checks that a request may name an object |
| `bucket` | reads and deletes a source's objects |
| `description` | the content type and metadata that come along with an object |
"""
