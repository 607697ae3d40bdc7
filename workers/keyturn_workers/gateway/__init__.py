"""The gateway: HTTP in, plaintext out (SPEC 9).

| module | what it holds |
| --- | --- |
| `server`, `protocol` | one process: settings, uvicorn, signals, slow heads |
| `app` | routes, the door that counts, refusals |
| `auth`, `keyring_lookups` | who may ask: the keyring alone decides |
| `fair_shares`, `upload_limits`, `staged_bodies` | what one project may hold at once |
| `paths`, `ranges`, `conditions`, `answers`, `problems` | HTTP as values; pure |
| `objects` | GET, HEAD and PUT of an object |
| `opener` | one object: opened by the right key, read by chunks |
| `uploads`, `rotations` | what is published on a caller's behalf |
| `client` | the other end of a connection: slow, silent or gone |
| `openapi`, `docs`, `metrics` | what it says of itself |

It must never give out a byte that is not authenticated, nor end an answer in order that is
not whole.
"""
