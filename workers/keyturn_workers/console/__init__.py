"""The operator's console: a process that shows a deployment and steers it by requests (SPEC 16).

| module | contents |
| --- | --- |
| `server`, `app`, `settings` | one process, its routes, its settings |
| `context` | the parts that pages use, as one value |
| `ask` | queries to control workers, and the last answer to each |
| `actions` | people's requests, each published once |
| `key_usage` | the objects under each master key: a census of the whole bucket |
| `prometheus` | history for the charts |
| `form_tokens` | one-time forms and fresh API keys |
| `auth` | sign-in, and the protection of requests |
| `pages`, `rendering` | the pages, and their HTML |

The console holds a publisher's key and public event keys; no master key, no private event key, no
credentials of the bucket. So it imports no module that reads the bucket or opens a key.
"""
