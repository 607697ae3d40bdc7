"""The upload worker: accept, encrypt, store, publish (SPEC 7).

| module | what it does |
| --- | --- |
| `handler` | serves upload requests from the queue |
| `uploader` | one upload, over all its attempts |
| `context`, `attempt` | what all uploads share; one attempt, as a value |
| `request_body`, `body_pipeline` | opens the request's body, inline or staged |
| `object_writer`, `multipart` | puts the object |
| `existing_upload` | finds the upload's own object at its target |
| `keyring_recheck` | decides whether the keyring must be read again after the put |
| `staging_cleanup` | removes abandoned bodies and multipart uploads |
"""

from keyturn_workers.upload.context import Limits, UploadContext
from keyturn_workers.upload.handler import UploadHandler
from keyturn_workers.upload.uploader import Uploader, UploadResult

__all__ = ["Limits", "UploadContext", "UploadHandler", "UploadResult", "Uploader"]
