"""What the records and the objects of a bucket say, for operators (SPEC 8.6, 16.1).

`keyturn status` and the control worker's reports share it. It opens records and wraps with the
operator's master keys, changes nothing, and never returns a key, a wrap or a DEK.

| module | what it does |
| --- | --- |
| `reader` | `StatusReader`: the report that a `status.requested` asks for |
| `page` | one page of rows: where it is cut, and its digest |
| `record_views` | the views `projects` and `sweeps` |
| `sweep_view`, `sweep_parts` | the view `sweep`, with the parts of a sweep of all |
| `failures_view`, `evidence_view`, `master_keys_view` | the views of these names |
| `objects_view`, `census` | the view `objects`: what each object and record depends on |
| `records` | opens a listed record: a keyring, or one of sweeps |
| `rows` | keyrings, and the origins of records of sweeps, as rows |
| `summaries` | rows of records by their ETags, so that a page is cheap the second time |
| `progress` | how far a sweep is, and how fast |
| `object_counter` | how many objects a project has, counted some listings at a time |
"""
