"""The gateway: HTTP in, plaintext out (SPEC 9).

| module | contents |
| --- | --- |
| `server` | assembles one process, on `http_server` |
| `app` | routes, error handlers, CORS, metrics of each request |
| `auth`, `keyring_lookups` | authentication of callers, by keyrings only |
| `shares` | limits on one project's concurrent use |
| `request`, `problems` | parsing of requests, and errors as responses |
| `read`, `objects` | GET and HEAD of an object: opened with the right key, and its plaintext |
| `listing`, `links` | a project's objects, and links to them |
| `uploads`, `deletes`, `rotations` | requests published on a caller's behalf |
| `publishing` | published requests that have no outcome yet |
| `description`, `metrics` | the OpenAPI description and the Prometheus metrics |

It never sends a byte that is not authenticated, and never ends an incomplete response normally.
"""
