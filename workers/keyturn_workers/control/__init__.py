"""The control worker: enrollments, rotations, recoveries, sweeps, deletes, and consoles' requests.

See SPEC 5.4, 6, 8 and 16.

| module | what it does |
| --- | --- |
| `request_handler` | serves requests; sweeps go to `sweep.starter`, reports to `status` |
| `enrollment` | creates a project's first keyring |
| `rotation` | changes the keyring, and starts the sweep |
| `recovery` | accepts a keyring that its mark contradicts, or that has none |
| `deletion` | puts tombstones |
| `dead_letters` | replays and discards dead letters |
"""

from keyturn_workers.control.dead_letters import DeadLetterMover
from keyturn_workers.control.deletion import Deleter
from keyturn_workers.control.enrollment import Enroller
from keyturn_workers.control.recovery import Recoverer
from keyturn_workers.control.request_handler import ControlHandler
from keyturn_workers.control.rotation import Rotator

__all__ = [
    "ControlHandler",
    "DeadLetterMover",
    "Deleter",
    "Enroller",
    "Recoverer",
    "Rotator",
]
