"""The console's pages (SPEC 16.2).

| module | pages |
| --- | --- |
| `now` | *Now*: what needs a person, and whether work gets done |
| `projects` | *Projects*, *Project*, evidence to download |
| `sweeps` | *Sweeps*, *Sweep*, the files of its failures |
| `requests` | the forms of a sweep and of a delete, and what became of a request |
| `rotation` | the rotation of a project's key |
| `keys` | *Master keys*, the count of what depends on each, the steps of a rotation |
| `dead` | *Dead letters*: by code, one by one, replay and discard |
| `queues` | *Queues and workers* |
| `audit` | *Audit* |
| `codes` | *Codes*: what each code means |
| `forms` | what forms have in common |
"""
