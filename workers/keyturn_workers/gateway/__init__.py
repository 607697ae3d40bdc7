"""The gateway: HTTP in, plaintext out (SPEC 9).

| module | what it holds |
| --- | --- |
| `server` | one process: its parts, on `http_server` |
| `app` | routes, error handlers, metrics of each request |
| `auth`, `keyring_lookups`, `listing_check` | who may read: only the keyring decides |
| `fair_shares`, `upload_limits`, `staging_quota` | what one project may use at once |
| `pending_requests` | what was published and has no outcome yet |
| `paths`, `ranges`, `conditions`, `response_headers`, `problems` | HTTP as values; pure |
| `object_routes` | GET, HEAD and PUT of an object |
| `object_opener` | opens one object with the right key |
| `object_reader`, `encrypted_reader`, `legacy_reader`, `plaintext_reader` | read its plaintext |
| `upload_routes`, `rotation_routes` | what is published on a caller's behalf |
| `openapi`, `docs_page`, `metrics` | what the gateway says about itself |

It never sends a byte that is not authenticated, and never ends an incomplete response normally.
"""
