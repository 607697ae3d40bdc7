"""The upload worker: accept, encrypt, store, tell (SPEC 7)."""

from keyturn_workers.upload.handler import UploadHandler
from keyturn_workers.upload.uploader import Limits, Uploader, UploadResult

__all__ = ["Limits", "UploadHandler", "UploadResult", "Uploader"]
