"""The console's pages (SPEC 16.2).

| module | pages |
| --- | --- |
| `now` | *Now*: problems that need a person, and the rate of work |
| `projects` | *Projects*, *Project*, evidence to download |
| `sweeps` | *Sweeps*, *Sweep*, the files of its failures |
| `requests` | the forms of a sweep and of a delete, and the outcome of a request |
| `rotation` | the enrollment of a project, and the rotation of its key |
| `keys` | *Master keys*, the census of what depends on each, the steps of a rotation |
| `dead` | *Dead letters*: by code, one by one, replay and discard |
| `queues` | *Queues and workers* |
| `audit` | *Audit* |
| `codes` | *Codes*: the meaning of each code |
| `forms` | common parts of forms |
"""
