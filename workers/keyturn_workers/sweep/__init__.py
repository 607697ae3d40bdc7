"""Sweeps: bring every object of a project to the desired state, and prove it (SPEC 8).

A rotation changes the keyring first, and then adds an origin to the record of the project
(`starter`). From then on the record is worked on step by step: a step reads record and keyring,
and decides what is next (`reconciler`, by the rules of `transitions` and `proof`). It sends pages
of object keys to any number of workers. Each makes an attempt at its page and stores what it saw
(`page`). Each step schedules the next one, which looks for results. Once every page has been seen
late enough with nothing to change, the step leaves evidence (`evidence`), lets the keyring drop
its old keys, and gives each origin its end.

| module | what it does |
| --- | --- |
| `record` | the records as values: origins, rounds, pages, ends |
| `transitions` | how origins, rounds and ends follow each other in a record; pure |
| `proof` | when a page is proven, attempted again, or sent; pure |
| `progress` | how far a sweep is, for events, reports and HTTP; pure |
| `store` | the records in the bucket |
| `starter` | requests become origins |
| `steps` | what a step message does to a record, and what all parts of a sweep share |
| `reconciler` | the steps of one project |
| `paginator` | divides a project's object keys into pages |
| `page` | one attempt at one page |
| `page_object_keys` | lists the object keys of a page, as the bucket has them now |
| `evidence` | the evidence of clean ends |
| `all_projects` | sweeps of all projects: one part for each |
| `messages`, `handler` | the messages of sweeps: steps, pages, events |
| `periodic` | what was lost: messages, records |
"""

from keyturn_workers.sweep.messages import SweepDispatcher, end_event
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
