"""The upload worker: accept, encrypt, store, tell (SPEC 7)."""

from keyturn_workers.upload.handler import UploadRole
from keyturn_workers.upload.uploader import Limits, Uploader, UploadResult

__all__ = ["Limits", "UploadResult", "UploadRole", "Uploader"]
