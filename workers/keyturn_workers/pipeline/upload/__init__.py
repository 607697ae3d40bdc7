"""The upload worker: accept, encrypt, store, publish (SPEC 7).

| module | purpose |
| --- | --- |
| `request_handler` | serves upload requests from the queue, and makes their events |
| `uploader` | one upload, over all its attempts |
| `attempt` | the shared context, an upload, and one attempt, as values |
| `sessions` | opens transport keys, and remembers publishers' sealing sessions |
| `body` | opens the request's body: inline, staged, or an object of a source |
| `put` | puts the object, and decides whether the keyring must be read again |
| `existing` | finds the upload's own object at its target |
| `cleanup` | removes abandoned bodies and multipart uploads |

An upload is refused where the reason is found: in `body`, `existing`, `put` or `uploader`.
"""
