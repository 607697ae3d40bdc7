"""The operator's console: a process that shows a deployment and steers it by requests (SPEC 16).

| module | what it holds |
| --- | --- |
| `server`, `app`, `settings` | one process, its routes, its settings |
| `context` | the parts that pages use, as one value |
| `ask` | queries to control workers, and the last answer to each |
| `actions` | requests that people make, each published once |
| `key_usage` | what depends on each master key: a census of the whole bucket |
| `prometheus` | history for the charts |
| `form_tokens` | forms that take effect once, and fresh API keys |
| `auth` | who may use it, and what protects its requests |
| `pages`, `rendering` | the pages, and how they become HTML |

It holds a publisher's key and public event keys; no master key, no event key, no credentials of the
bucket. So nothing here imports what reads the bucket or opens a key.
"""
