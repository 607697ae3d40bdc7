"""Sweeps: bring every object of a project to the desired state, and prove it (SPEC 8).

A rotation changes the keyring first, and then adds an origin to the record of the project
(`starter`). From then on the record is worked on step by step: a step reads record and keyring,
and decides what is next (`reconciler`, by the rules of `progress`). It sends pages of object keys
to any number of workers. Each makes an attempt at its page and stores what it saw (`page`). Each
step schedules the next one, which looks for results. Once every page has been seen late enough
with nothing to change, the step leaves evidence (`evidence`), lets the keyring drop its old keys,
and gives each origin its end.

| module | what it does |
| --- | --- |
| `record` | the records as values: origins, rounds, pages, ends |
| `progress` | what becomes of a record: the rules, pure |
| `store` | the records in the bucket |
| `starter` | requests become origins |
| `steps` | what a step message does to a record, and what all parts of a sweep share |
| `reconciler`, `planner` | the steps of one project |
| `page`, `page_listing` | one attempt at one page |
| `evidence` | the evidence of clean ends |
| `all_projects` | sweeps of all projects: one part for each |
| `hints`, `handler` | hints on the broker, and events |
| `periodic` | what was lost: messages, records |
"""

from keyturn_workers.sweep.hints import SweepDispatcher, end_event
from keyturn_workers.sweep.record import ALL, AllRecord, Options, Origin, ProjectRecord
from keyturn_workers.sweep.starter import SweepStarter, new_origin
from keyturn_workers.sweep.steps import SweepContext
from keyturn_workers.sweep.store import SweepStore

__all__ = [
    "ALL",
    "AllRecord",
    "Options",
    "Origin",
    "ProjectRecord",
    "SweepContext",
    "SweepDispatcher",
    "SweepStarter",
    "SweepStore",
    "end_event",
    "new_origin",
]
