"""Pages of sweeps and master keys, and of what people do: sweep, rotate, delete (SPEC 16.2).

| module | pages |
| --- | --- |
| `sweep_pages` | *Sweeps*, *Sweep*, the files of its failures |
| `start_pages` | the form of a sweep, and its confirmation |
| `key_pages` | *Master keys*, and the count of what depends on each |
| `rotation_pages` | the rotation of a project's key |
| `delete_pages` | the delete of an object |
| `action_pages` | what became of a request |
| `forms` | what these have in common |
| `failures`, `key_rotation` | what they show; pure |
"""

from keyturn_workers.console.sweeps import (
    action_pages,
    delete_pages,
    key_pages,
    rotation_pages,
    start_pages,
    sweep_pages,
)

# `/sweeps/new` is no sweep's page: it has one segment less.
routes = [
    *sweep_pages.routes,
    *start_pages.routes,
    *key_pages.routes,
    *rotation_pages.routes,
    *delete_pages.routes,
    *action_pages.routes,
]

__all__ = ["routes"]
