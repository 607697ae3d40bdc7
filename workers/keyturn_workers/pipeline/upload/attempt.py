"""An upload, the context that all uploads share, and one attempt, as values (SPEC 4.3, 6.4, 7)."""

import asyncio
from dataclasses import dataclass, field

from keyturn.crypto.base64 import from_base64
from keyturn.crypto.cobblestone import plaintext_size
from keyturn.crypto.keys import new_dek
from keyturn.crypto.wraps import upload_tag
from keyturn.errors import BadSealError, ChunkError
from keyturn.identifiers import object_s3_key, staging_s3_key
from keyturn.messages.requests import (
    INLINE_MAX_BYTES,
    InlineBody,
    SourceBody,
    SourceObject,
    StagedBody,
    UploadRequested,
)
from keyturn.metadata import UPLOAD, encode_caller_metadata, format_upload_tag
from keyturn_workers.core.customer_key_port import CustomerKeys
from keyturn_workers.core.customer_keys import NO_SECRETS, CustomerSecrets
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.keyring_snapshot import KeyringSnapshot
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import Condition, Headers, IfMatch
from keyturn_workers.core.wraps import build_object_metadata, wrap
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.pipeline.objects.apply import COPY_LIMIT_BYTES
from keyturn_workers.pipeline.sources.port import Sources
from keyturn_workers.pipeline.upload.sessions import OpenedSessions
from keyturn_workers.process.metrics import WorkerMetrics


@dataclass(frozen=True, slots=True)
class Limits:
    """Settings of the upload worker; sizes in bytes."""

    encryption_enabled: bool
    upload_max_bytes: int
    part_size_bytes: int
    stream_concurrency: int
    copy_limit_bytes: int = COPY_LIMIT_BYTES


@dataclass(slots=True)
class UploadContext:
    """The dependencies and limits that all uploads of a process share.

    `stream_slots` bounds the bodies that stream to the storage at once; `comparison_slots` those
    that are compared with an object. They are separate, since an upload that holds a stream slot
    may need a comparison.
    """

    storage: Storage
    keyrings: KeyringReader
    operator_keys: KekDeriver
    customer_keys: CustomerKeys
    sessions: OpenedSessions
    limits: Limits
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)
    sources: Sources = field(default_factory=Sources)
    stream_slots: asyncio.Semaphore = field(init=False)
    comparison_slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.stream_slots = asyncio.Semaphore(self.limits.stream_concurrency)
        self.comparison_slots = asyncio.Semaphore(self.limits.stream_concurrency)


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload request and the publisher that signed it.

    `secrets` are the customer secrets that it has asked for. It keeps them until it ends.
    """

    request: UploadRequested
    publisher: str
    secrets: CustomerSecrets = NO_SECRETS

    @property
    def s3_key(self) -> str:
        """The S3 key of the object."""
        return object_s3_key(self.request.project, self.request.key)

    @property
    def staging_s3_key(self) -> str:
        """The S3 key of a staged body."""
        return staging_s3_key(self.publisher, self.request.upload_id)

    @property
    def is_staged(self) -> bool:
        """True if the body is in staging, not in the request."""
        return isinstance(self.request.body, StagedBody)

    @property
    def source(self) -> SourceObject | None:
        """The source object that is the body; None if the publisher sent or staged a body."""
        body = self.request.body
        return body.source if isinstance(body, SourceBody) else None

    @property
    def is_streamed(self) -> bool:
        """True if the body is not held in memory."""
        return self.is_staged or (self.source is not None and self.source.size > INLINE_MAX_BYTES)

    @property
    def tag_publisher(self) -> str:
        """The publisher in the upload's tag (SPEC 4.3).

        Empty for an object of a source: it is the same upload whichever publisher names it. No
        publisher has an empty name, so no publisher's own body passes for a source's object.
        """
        return self.publisher if self.source is None else ""

    def size_bytes(self) -> int:
        """The bytes of plaintext in the request's body; for a sealed body, from its sealed size.

        Raises:
            BadSealError: no sealed body has this length.
        """
        match self.request.body:
            case SourceBody(source=source):
                return source.size
            case InlineBody(inline=inline):
                sealed_bytes = len(from_base64(inline))
            case StagedBody(staged=staged):
                sealed_bytes = staged.size
        try:
            return plaintext_size(sealed_bytes)
        except ChunkError as exc:
            raise BadSealError("no sealed body has this size") from exc


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to store an object, with its own DEK.

    Attributes:
        upload: the upload to store.
        transport_key: the key that sealed the body; empty for the object of a source.
        condition: the condition of the put.
        snapshot: the keyring read that the wraps and the lease come from.
        is_encrypted: False to store plaintext.
        dek: 32 bytes for this attempt alone: if its response is lost, the next has another.
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
        request, snapshot = self.upload.request, self.snapshot
        caller_wire = encode_caller_metadata(request.metadata or {})
        if not self.is_encrypted:
            return {**caller_wire, UPLOAD: request.upload_id}
        tag = upload_tag(
            self.dek,
            publisher=self.upload.tag_publisher,
            project=request.project,
            object_key=request.key,
            upload_id=request.upload_id,
            size_bytes=size_bytes,
        )
        secrets = snapshot.keyring.secrets_from(self.upload.secrets)
        return build_object_metadata(
            wrap(snapshot.desired, request.key, self.dek, secrets),
            upload_id=request.upload_id,
            tag=format_upload_tag(tag),
            caller_wire=caller_wire,
        )
