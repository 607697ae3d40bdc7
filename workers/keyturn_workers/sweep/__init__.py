"""Sweeps: every object of a project brought to the desired state, and that proven (SPEC 8).

| module | what it does |
| --- | --- |
| `start` | begins a sweep: its record, its first step |
| `steps`, `planner`, `judge` | planner and prover: list keys as pages, judge what pages tell |
| `pages`, `listing` | one take of one page: look, bring to the desired state, tell |
| `takeover` | a later sweep of a project takes over the earlier ones |
| `everyone` | a sweep of all projects |
| `carrying` | what a message does to a record, the same for both |
| `plan`, `counts`, `store` | records: as values, and in the bucket |
| `messages`, `outbox`, `consumer`, `role` | hints on the broker, and events |
| `rescue`, `lost` | sweeps whose messages were lost, rotations whose record is gone |
"""

from keyturn_workers.sweep.outbox import Outbox, end_of, failure_of
from keyturn_workers.sweep.plan import ALL, AllPlan, Plan, SweepRequest
from keyturn_workers.sweep.starter import Starter
from keyturn_workers.sweep.store import SweepStore

__all__ = [
    "ALL",
    "AllPlan",
    "Outbox",
    "Plan",
    "Starter",
    "SweepRequest",
    "SweepStore",
    "end_of",
    "failure_of",
]
