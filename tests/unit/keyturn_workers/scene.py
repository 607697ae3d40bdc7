"""One object in an in-memory bucket: read, planned and written step by step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from keyturn.crypto import HEADER_BYTES
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn.metadata import Wraps, parse
from keyturn_workers.core.plan_action import NoOp, ObjectView, PlannedAction, plan_action
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
from keyturn_workers.pipeline.objects.apply import COPY_LIMIT_BYTES, ActionExecutor
from keyturn_workers.storage.clock import StorageClock
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    deleted,
    enc,
    keyring,
    rotated,
    sealed_object,
)
from tools.harness.local_keys import admin_keks, build_keyring, desired_state, operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyturn_workers.core.keyring import Keyring
    from keyturn_workers.core.keyring_snapshot import KeyringSnapshot

KEY: Final = "reports/q3.pdf"
TARGET: Final = object_s3_key("acme", KEY)
UPLOAD_ID: Final = "2f6c9a0e-1111-4111-8111-111111111111"
CALLER: Final = {"author": "kim", "title": "=?utf-8?b?w7xiZXI=?="}
# Everything that a self-copy would reset, but for the lock.
RESTATED: Final = {
    "cache-control": "max-age=60",
    "content-disposition": "attachment",
    "content-encoding": "gzip",
    "content-language": "de",
    "expires": "Thu, 01 Dec 2033 16:00:00 GMT",
    "x-amz-server-side-encryption": "aws:kms",
    "x-amz-server-side-encryption-aws-kms-key-id": "arn:aws:kms:eu-west-1:1:key/k",
    "x-amz-server-side-encryption-bucket-key-enabled": "true",
    "x-amz-storage-class": "STANDARD_IA",
    "x-amz-website-redirect-location": "/elsewhere",
}
TAGS: Final = {"team": "legal"}
KEYS: Final = OperatorKeys.local(MASTER_KEYS)
KEKS: Final = admin_keks("acme", MASTER_KEYS)
ENCRYPT: Final = SweepOptions(encrypt_plaintext=True)


@dataclass
class Scene:
    """A bucket with one project's keyring; an object is planted by one of the methods."""

    storage: MemoryStorage = field(default_factory=MemoryStorage)
    ring: Keyring = field(default_factory=keyring)
    copy_limit_bytes: int = COPY_LIMIT_BYTES

    def __post_init__(self) -> None:
        self.write_keyring(self.ring)
        clock = StorageClock(15, self.storage.elapsed_s)
        self.keyrings = KeyringReader(
            self.storage, operator_keys(MASTER_KEYS), lease_s=15, cache_s=2, clock=clock
        )
        self.executor = ActionExecutor(self.storage, self.keyrings, self.copy_limit_bytes)

    def write_keyring(self, ring: Keyring) -> None:
        self.ring = ring
        self.storage.plant(keyring_s3_key("acme"), build_keyring(ring, MASTER_KEYS), Headers({}))

    async def rotate(self) -> None:
        """A rotation, from outside."""
        self.write_keyring(rotated(self.ring))

    async def change_master_key(self) -> None:
        self.write_keyring(replace(self.ring, master_key="m2"))

    async def late(self) -> None:
        """The worker stalls for longer than any lease."""
        self.storage.advance(60)

    async def delete(self) -> None:
        """A tombstone, put there by another worker."""
        self.plant(deleted(desired_state(self.ring, MASTER_KEYS), KEY), b"")

    def plant(self, own: Mapping[str, str], body: bytes, **more: Any) -> bytes:
        """An object with these `enc-` names and everything else that an object can have."""
        headers = Headers({**CALLER, **own}, "application/pdf", RESTATED)
        self.storage.plant(TARGET, body, headers, **{"tags": TAGS, **more})
        return body

    def plant_sealed(self, plaintext: bytes = b"hello", **more: Any) -> bytes:
        wraps, body = sealed_object(desired_state(self.ring, MASTER_KEYS), KEY, plaintext)
        return self.plant(enc(wraps, UPLOAD_ID), body, **more)

    async def read_view(self) -> ObjectView:
        return ObjectView(*await self.storage.read_start(TARGET, HEADER_BYTES))

    async def plan_action(
        self, options: SweepOptions | None = None
    ) -> tuple[ObjectView, PlannedAction, KeyringSnapshot]:
        view, snapshot = await self.read_view(), await self.keyrings.read_fresh("acme")
        desired = snapshot.desired
        given = options or SweepOptions()
        return view, plan_action(view, KEY, snapshot.keyring, desired, KEKS, given), snapshot

    async def reconcile(self, options: SweepOptions | None = None) -> PlannedAction:
        """Read, plan and execute; returns the planned action."""
        view, action, snapshot = await self.plan_action(options)
        await self.executor.execute("acme", KEY, view, action, snapshot)
        return action

    async def is_current(self) -> bool:
        _, action, _ = await self.plan_action()
        return action == NoOp("current")

    async def body(self) -> bytes:
        return (await self.storage.read(TARGET))[1]

    async def wraps(self) -> Wraps:
        found = parse((await self.storage.head(TARGET)).metadata)
        assert isinstance(found, Wraps)
        return found

    async def check_the_rest(self, upload_id: str | None = UPLOAD_ID) -> None:
        """Everything but the wraps is as `plant` left it."""
        headers = (await self.storage.head(TARGET)).headers
        others = {n: v for n, v in headers.metadata.items() if not n.startswith("enc-")}
        assert others == CALLER
        assert headers.metadata.get("enc-upload") == upload_id
        assert headers.content_type == "application/pdf"
        assert headers.restated == RESTATED

    async def open_uploads(self) -> list[str]:
        return [row.key async for row in self.storage.list_multipart_uploads("")]


def in_plaintext(body: bytes = b"hello", **more: Any) -> Scene:
    """A project that allows plaintext, and an upload's object that is not encrypted."""
    on = Scene(ring=keyring(plaintext=True))
    on.plant({"enc-upload": UPLOAD_ID}, body, **more)
    return on
