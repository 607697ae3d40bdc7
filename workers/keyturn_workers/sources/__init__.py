"""Buckets that objects are taken in from (SPEC 17).

| module | what it does |
| --- | --- |
| `config` | the buckets, and where their objects go; pure |
| `bucket` | reads and deletes objects there; checks that a request may name one |
"""
