"""An uploader on a bucket in memory, and good requests for it.

The bucket lets a test rotate the keyring right before a put takes effect, lose a response, or
refuse a lease: what on real servers takes a race happens here each time (SPEC 7).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from keyturn.crypto import (
    BODY_CONTEXT,
    HEADER_BYTES,
    IntakeKey,
    open_sealed,
    seal,
    to_base64,
    transport_context,
    upload_info,
)
from keyturn.identifiers import keyring_s3_key, staging_s3_key
from keyturn.messages import UploadRequested
from keyturn.metadata import Wraps, parse
from keyturn_workers.core.storage_values import Capabilities, Headers
from keyturn_workers.core.wraps import verify_upload
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.pipeline.upload.attempt import Limits, UploadContext
from keyturn_workers.pipeline.upload.sessions import OpenedSessions
from keyturn_workers.pipeline.upload.uploader import Uploader, UploadResult
from keyturn_workers.process.metrics import WorkerMetrics
from keyturn_workers.storage.clock import StorageClock
from tests.unit.keyturn_workers.factories import (
    ADMIN_KEKS,
    AT,
    MASTER_KEYS,
    OPERATOR_KEYS,
    keyring,
    rotated,
)
from tools.harness.customer_keys import HeldCustomerKeys
from tools.harness.local_keys import build_keyring, operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.core.keyring import Keyring

INTAKE = IntakeKey.from_seed(bytes(32))
UPLOAD_ID = "2f6c9a0e-1111-4111-8111-111111111111"
OTHER_ID = "2f6c9a0e-2222-4222-8222-222222222222"
TARGET = "acme/k"
STAGED = staging_s3_key("api", UPLOAD_ID)
PART_BYTES = 20_000
IN_PARTS = Capabilities(conditional_completion=True)
DATA = os.urandom(100_000)
# How a body reaches the bucket: the call of the storage that puts it there.
WAYS: Final = ("put", "put_stream", "complete_multipart")


def unleased() -> Keyring:
    """A keyring that names a shorter lease than the uploader's: each put needs a second read."""
    return replace(keyring(), lease_s=14)


@dataclass
class Bench:
    """One bucket, one project, one uploader."""

    storage: MemoryStorage
    ring: Keyring = field(default_factory=unleased)
    encryption_enabled: bool = True
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)
    customer_keys: HeldCustomerKeys = field(default_factory=HeldCustomerKeys)

    def __post_init__(self) -> None:
        self.write_keyring(self.ring)
        self.clock = StorageClock(15, self.storage.elapsed_s)
        self.keyrings = KeyringReader(
            self.storage, operator_keys(MASTER_KEYS), lease_s=15, cache_s=2, clock=self.clock
        )
        limits = Limits(
            encryption_enabled=self.encryption_enabled,
            upload_max_bytes=10**9,
            part_size_bytes=PART_BYTES,
            stream_concurrency=2,
        )
        sessions = OpenedSessions("test", {"main": INTAKE})
        self.context = UploadContext(
            self.storage,
            self.keyrings,
            OPERATOR_KEYS,
            self.customer_keys,
            sessions,
            limits,
            self.metrics,
        )
        self.uploader = Uploader(self.context)

    def write_keyring(self, ring: Keyring) -> None:
        self.ring = ring
        self.storage.plant(keyring_s3_key("acme"), build_keyring(ring, MASTER_KEYS), Headers({}))

    async def rotate(self) -> None:
        """A rotation, from outside."""
        self.write_keyring(rotated(self.ring))

    async def serve(self, request: UploadRequested, *, seen_before: bool = False) -> UploadResult:
        return await self.uploader.serve(request, "api", seen_before=seen_before)

    async def plaintext(self, key: str = TARGET) -> bytes:
        """The object's plaintext; both its wraps must match the keyring."""
        head, body = await self.storage.read(key)
        wraps = parse(head.metadata)
        assert isinstance(wraps, Wraps)
        examined = verify_upload(wraps, body[:HEADER_BYTES], "k", self.ring, ADMIN_KEKS)
        assert examined.current
        return open_sealed(examined.dek, BODY_CONTEXT, body)

    async def exists(self, key: str) -> bool:
        return [row.key async for row in self.storage.list(key)] == [key]

    async def open_uploads(self) -> list[str]:
        return [row.key async for row in self.storage.list_multipart_uploads("")]

    async def metadata(self) -> dict[str, str]:
        return dict((await self.storage.head(TARGET)).metadata)


def bench(way: str = "put", **more: Any) -> Bench:
    in_parts = way == "complete_multipart"
    storage = MemoryStorage(capabilities=IN_PARTS) if in_parts else MemoryStorage()
    return Bench(storage, **more)


def request(
    on: Bench, way: str = "put", data: bytes = DATA, upload_id: str = UPLOAD_ID
) -> UploadRequested:
    """A good upload of `acme/k`; one that is not put at once has its body in staging."""
    transport_key = os.urandom(32)
    sealed = seal(transport_key, transport_context(upload_id), data)
    ciphertext = INTAKE.public_key.seal(transport_key, upload_info(upload_id, "acme", "k"))
    staged = way != "put"
    if staged:
        on.storage.plant(staging_s3_key("api", upload_id), sealed, Headers({}))
    return UploadRequested.model_validate(
        {
            "upload_id": upload_id,
            "project": "acme",
            "key": "k",
            "requested_at": AT,
            "sealed_key": {"intake_key": "main", "ciphertext": to_base64(ciphertext)},
            "body": {"staged": {"size": len(sealed)}} if staged else {"inline": to_base64(sealed)},
        }
    )
