"""Dead letters in the console: an index of them, and what people do to them (SPEC 16.2).

| module | what it holds |
| --- | --- |
| `letters` | what is kept of a letter in memory |
| `index` | all letters as of a time, filtered and sorted; pure |
| `reading` | reads the queues into an index, and single letters whole |
| `jobs` | plans that a person confirms, and the jobs that carry them out |
| `moving` | replays and discards letters, each recorded in the audit trail before |
| `service` | `DeadLetters`: all of this for the pages |
| `pages`, `action_pages` | the pages |
"""

from keyturn_workers.console.dead import action_pages, pages
from keyturn_workers.console.dead.service import DeadLetters

# `/dead/plans/…` and `/dead/jobs/…` are no queues, so they come first.
routes = [*action_pages.routes, *pages.routes]

__all__ = ["DeadLetters", "routes"]
