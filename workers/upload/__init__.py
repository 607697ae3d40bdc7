"""The upload worker: accept, encrypt, store, tell (SPEC 7)."""

from workers.upload.role import UploadRole
from workers.upload.uploader import Limits, Settled, Uploader

__all__ = ["Limits", "Settled", "UploadRole", "Uploader"]
