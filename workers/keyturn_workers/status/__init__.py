"""What the records and the objects of a bucket say, for operators (SPEC 8.6, 16.1).

`keyturn status` and the control worker's reports share it. It opens records and wraps with the
operator's master keys, changes nothing, and never returns a key, a wrap or a DEK.

| module | what it does |
| --- | --- |
| `reader` | `StatusReader`: the report that a `status.requested` asks for |
| `page` | one page of rows: where it is cut, and its digest |
| `records` | opens a listed record: a keyring, or one of a sweep |
| `rows` | keyrings and sweeps as rows |
| `summaries` | rows of records by their ETags, so that a page is cheap the second time |
| `progress` | how far a sweep is, and how fast |
"""
