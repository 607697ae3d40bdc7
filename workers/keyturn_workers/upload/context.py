"""What the upload worker shares between uploads, and one upload as a value (SPEC 6.4, 7)."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from keyturn.crypto import ChunkError, IntakeKey, from_base64, plaintext_size
from keyturn.errors import BadSealError
from keyturn.identifiers import object_s3_key, staging_s3_key
from keyturn.messages import InlineBody, StagedBody, UploadRequested
from keyturn_workers.keyring import KeyringReader
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.objects.apply import COPY_LIMIT_BYTES
from keyturn_workers.storage import Storage
from keyturn_workers.worker.metrics import WorkerMetrics


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

    `stream_slots` bounds the staged bodies that are stored at once; `comparison_slots` those
    that are compared with an object. They are apart, since a comparison may happen while its
    upload holds a stream slot.
    """

    storage: Storage
    keyrings: KeyringReader
    operator_keys: OperatorKeys
    intake_keys: Mapping[str, IntakeKey]
    limits: Limits
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)
    stream_slots: asyncio.Semaphore = field(init=False)
    comparison_slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.stream_slots = asyncio.Semaphore(self.limits.stream_concurrency)
        self.comparison_slots = asyncio.Semaphore(self.limits.stream_concurrency)


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload request and the publisher that signed it."""

    request: UploadRequested
    publisher: str

    @property
    def s3_key(self) -> str:
        """Where the object goes."""
        return object_s3_key(self.request.project, self.request.key)

    @property
    def staging_s3_key(self) -> str:
        """Where a staged body is."""
        return staging_s3_key(self.publisher, self.request.upload_id)

    @property
    def is_staged(self) -> bool:
        """Whether the body is in staging, not in the request."""
        return isinstance(self.request.body, StagedBody)

    def size_bytes(self) -> int:
        """The bytes of plaintext in the request's body, by the length of its seal.

        Raises:
            BadSealError: no sealed body has this length.
        """
        match self.request.body:
            case InlineBody(inline=inline):
                sealed_bytes = len(from_base64(inline))
            case StagedBody(staged=staged):
                sealed_bytes = staged.size
        try:
            return plaintext_size(sealed_bytes)
        except ChunkError as exc:
            raise BadSealError("no sealed body has this size") from exc
