"""One attempt to store an object, as a value (SPEC 4.3, 7.2)."""

from dataclasses import dataclass, field

from keyturn.crypto import new_dek, upload_tag
from keyturn.metadata import UPLOAD, encode_caller_metadata, format_upload_tag
from keyturn_workers.keyring import KeyringSnapshot
from keyturn_workers.objects.wrap import build_object_metadata, wrap
from keyturn_workers.storage import Condition, Headers, IfMatch
from keyturn_workers.upload.context import Upload, UploadContext


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to store an object, with its own DEK.

    Attributes:
        upload: what is stored.
        transport_key: what the publisher sealed the body with.
        condition: of the put.
        snapshot: the keyring read that the wraps and the lease come from.
        is_encrypted: whether the object is encrypted, or stored as plaintext.
        dek: 32 bytes, only for this attempt: if its response is lost, the next one has another.
    """

    upload: Upload
    transport_key: bytes = field(repr=False)
    condition: Condition
    snapshot: KeyringSnapshot
    is_encrypted: bool
    dek: bytes = field(repr=False)

    @classmethod
    def begin(
        cls,
        context: UploadContext,
        upload: Upload,
        transport_key: bytes,
        condition: Condition,
        snapshot: KeyringSnapshot,
    ) -> "Attempt":
        """A new attempt by this keyring read.

        A put over an existing ETag replaces the upload's own plaintext: it is always encrypted.
        """
        is_encrypted = (
            context.limits.encryption_enabled
            or not snapshot.desired.plaintext_allowed
            or isinstance(condition, IfMatch)
        )
        return cls(upload, transport_key, condition, snapshot, is_encrypted, new_dek())

    def headers(self, size_bytes: int) -> Headers:
        """The object's metadata and content type; `size_bytes` is that of the plaintext."""
        content_type = (self.upload.request.content_type or "").strip(" ") or None
        return Headers(self._metadata(size_bytes), content_type)

    def _metadata(self, size_bytes: int) -> dict[str, str]:
        request = self.upload.request
        caller_wire = encode_caller_metadata(request.metadata or {})
        if not self.is_encrypted:
            return {**caller_wire, UPLOAD: request.upload_id}
        tag = upload_tag(
            self.dek,
            publisher=self.upload.publisher,
            project=request.project,
            object_key=request.key,
            upload_id=request.upload_id,
            size_bytes=size_bytes,
        )
        return build_object_metadata(
            wrap(self.snapshot.desired, request.key, self.dek),
            upload_id=request.upload_id,
            tag=format_upload_tag(tag),
            caller_wire=caller_wire,
        )
