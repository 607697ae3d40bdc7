"""Buckets that objects are taken in from (SPEC 17).

| module | what it does |
| --- | --- |
| `config` | which buckets, and where their objects go; pure |
| `bucket` | what is read and deleted there, and which of it a request may name |
"""
