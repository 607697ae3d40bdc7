"""The gateway: HTTP in, plaintext out (SPEC 9).

| module | what it holds |
| --- | --- |
| `server` | one process: its parts, on `http_server` |
| `app` | routes, error handlers, CORS, metrics of each request |
| `auth`, `keyring_lookups` | who may read: only the keyring decides |
| `shares` | what one project may use at once |
| `request`, `problems` | what a request says, and errors as responses |
| `read`, `objects` | GET and HEAD of an object: opened with the right key, and its plaintext |
| `listing`, `links` | a project's objects, and links to them |
| `uploads`, `deletes`, `rotations` | what is published on a caller's behalf |
| `publishing` | what was published and has no outcome yet |
| `description`, `metrics` | what the gateway says about itself |

It never sends a byte that is not authenticated, and never ends an incomplete response normally.
"""
