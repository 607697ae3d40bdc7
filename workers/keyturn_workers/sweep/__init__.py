"""Sweeps: bring every object of a project to the desired state, and prove it (SPEC 8).

| module | what it does |
| --- | --- |
| `context` | what the parts share |
| `starter` | starts a sweep: its record, its first step |
| `step_runner` | what a step message does to a record |
| `project_sweep`, `planner`, `progress` | a sweep of one project: plan and prove pages |
| `all_projects_sweep` | a sweep of all projects |
| `takeover` | a later sweep of a project takes over the earlier ones |
| `page_worker`, `page_context`, `page_listing` | one attempt at one page |
| `page_tags`, `page_versions` | tags and noncurrent versions of a page's objects |
| `plan`, `counts` | the records as values |
| `sweep_store` | plans, parts and markers of sweeps in the bucket |
| `page_record_store` | results, failures and tag notes of pages in the bucket |
| `record_store` | what both build on: reads and creates any sealed record of a sweep |
| `record_paths` | the paths of all these records |
| `messages`, `hint_consumer`, `handler`, `dispatcher` | hints on the broker, and events |
| `recovery`, `lost_rotations` | sweeps whose messages were lost, rotations whose record is gone |
"""

from keyturn_workers.sweep.context import SweepContext
from keyturn_workers.sweep.dispatcher import SweepDispatcher, completed_event, failed_event
from keyturn_workers.sweep.plan import ALL, AllPlan, Plan, SweepRequest
from keyturn_workers.sweep.starter import SweepStarter
from keyturn_workers.sweep.sweep_store import SweepStore

__all__ = [
    "ALL",
    "AllPlan",
    "Plan",
    "SweepContext",
    "SweepDispatcher",
    "SweepRequest",
    "SweepStarter",
    "SweepStore",
    "completed_event",
    "failed_event",
]
