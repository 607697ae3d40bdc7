"""Actions on real servers: executed as planned, all else unchanged, late ones refused (SPEC 8)."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest

from keyturn.crypto import BODY_CONTEXT, HEADER_BYTES, open_sealed
from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn.metadata import Wraps, parse
from keyturn_workers.core.errors import RefusedError
from keyturn_workers.core.plan_action import NoOp, ObjectView, PlannedAction, plan_action
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.wraps import verify_upload
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.pipeline.objects.apply import ActionExecutor, reconcile_object, tags_at_risk
from tests.integration.storage.conftest import opened
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    OPERATOR_KEYS,
    deleted,
    enc,
    keyring,
    rotated,
    sealed_object,
)
from tools.harness.local_keys import admin_keks, build_keyring, desired_state, operator_keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from keyturn_workers.core.keyring import Keyring
    from keyturn_workers.core.keyring_snapshot import KeyringSnapshot
    from keyturn_workers.storage.s3 import S3Storage
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

MIB: Final = 2**20
KEY: Final = "reports/ü q3.pdf"
TARGET: Final = object_s3_key("acme", KEY)
CALLER: Final = {"author": "kim"}
CONTENT: Final = {
    "cache-control": "max-age=60",
    "content-disposition": "attachment",
    "content-language": "de",
}
TAGS: Final = {"team": "legal/de"}
KEKS: Final = admin_keks("acme", MASTER_KEYS)
OPTIONS: Final = SweepOptions(encrypt_plaintext=True)
LARGE: Final = 11 * MIB
KINDS: Final = ["rewrap", "rewrap large", "encrypt", "encrypt large", "reseal"]


@dataclass
class Place:
    """One project's keyring and one object, on a server."""

    storage: S3Storage
    ring: Keyring
    key: str = KEY

    def __post_init__(self) -> None:
        self.target = object_s3_key("acme", self.key)
        self.keyrings = KeyringReader(
            self.storage, operator_keys(MASTER_KEYS), lease_s=15, cache_s=0
        )
        self.executor = ActionExecutor(self.storage, self.keyrings, copy_limit_bytes=6 * MIB)

    async def write_keyring(self, ring: Keyring) -> None:
        self.ring = ring
        await self.storage.put(
            keyring_s3_key("acme"), build_keyring(ring, MASTER_KEYS), Headers({})
        )

    async def put(self, own: dict[str, str], body: bytes) -> None:
        headers = Headers({**CALLER, **own}, "application/pdf", CONTENT)
        await self.storage.put(self.target, body, headers)
        await self.storage.write_tags(self.target, TAGS)

    async def plan_action(self) -> tuple[ObjectView, PlannedAction, KeyringSnapshot]:
        view = ObjectView(*await self.storage.read_start(self.target, HEADER_BYTES))
        snapshot = await self.keyrings.read_fresh("acme")
        ring, desired = snapshot.keyring, snapshot.desired
        return view, plan_action(view, self.key, ring, desired, KEKS, OPTIONS), snapshot

    async def make(self, kind: str) -> bytes:
        """An object to which that is due; gives its plaintext."""
        name, _, large = kind.partition(" ")
        plaintext = os.urandom(LARGE if large else 5)
        await self.write_keyring(self.ring)
        desired = desired_state(self.ring, MASTER_KEYS)
        match name:
            case "rewrap":
                wraps, body = sealed_object(desired, self.key, plaintext)
                await self.put(enc(wraps), body)
                await self.write_keyring(rotated(self.ring))
            case "encrypt":
                await self.put({}, plaintext)
            case "reseal":
                await self.put(deleted(desired, self.key), b"")
                await self.write_keyring(replace(self.ring, master_key="m2"))
        return plaintext

    async def plaintext(self) -> bytes:
        """What both wraps open."""
        head, body = await self.storage.read(self.target)
        wraps = parse(head.metadata)
        assert isinstance(wraps, Wraps)
        examined = verify_upload(wraps, body[:HEADER_BYTES], self.key, self.ring, KEKS)
        assert examined.current
        return open_sealed(examined.dek, BODY_CONTEXT, body)


@pytest.fixture(params=["moto", "ceph"])
async def place(
    request: pytest.FixtureRequest, new_bucket: Callable[[S3Server], str]
) -> AsyncIterator[Place]:
    server: S3Server = request.getfixturevalue(request.param)
    async with opened(server, new_bucket(server)) as storage:
        yield Place(storage, keyring(plaintext=True))


@pytest.mark.parametrize("kind", KINDS)
async def test_each_action_is_executed_as_planned(place: Place, kind: str) -> None:
    """Read back: the next plan is a no-op, and everything else is unchanged."""
    plaintext = await place.make(kind)
    view, action, snapshot = await place.plan_action()
    at_risk = tags_at_risk(place.storage, view, action, 6 * MIB)
    await place.executor.execute("acme", KEY, view, action, snapshot)
    _, again, _ = await place.plan_action()
    head = await place.storage.head(TARGET)
    if kind == "reseal":
        assert again == NoOp("deleted")
        return
    assert again == NoOp("current")
    assert await place.plaintext() == plaintext
    others = {n: v for n, v in head.metadata.items() if not n.startswith("enc-")}
    assert (others, head.headers.content_type) == (CALLER, "application/pdf")
    assert head.headers.restated.items() >= CONTENT.items()
    assert at_risk or await place.storage.read_tags(TARGET) == TAGS
    assert [row async for row in place.storage.list_multipart_uploads(TARGET)] == []


async def test_a_large_object_is_never_copied_from_another_one(place: Place) -> None:
    """Ceph decodes the name of a part's source twice: there it would be the other object."""
    place = Place(place.storage, keyring(plaintext=True), "a%41.pdf")
    other = Place(place.storage, keyring(plaintext=True), "aA.pdf")
    await other.make("rewrap large")
    plaintext = await place.make("rewrap large")
    view, action, snapshot = await place.plan_action()
    await place.executor.execute("acme", place.key, view, action, snapshot)
    assert await place.plaintext() == plaintext
    assert (await place.plan_action())[1] == NoOp("current")


@pytest.mark.parametrize("kind", ["rewrap", "rewrap large"])
async def test_reconcile_leaves_an_object_whose_tags_a_copy_drops_to_a_sweep(
    place: Place, kind: str
) -> None:
    plaintext = await place.make(kind)

    async def reconcile() -> None:
        await reconcile_object(
            "acme", KEY, place.storage, place.keyrings, OPERATOR_KEYS, copy_limit_bytes=6 * MIB
        )

    with pytest.raises(StorageUnavailableError, match="a sweep does that"):
        await reconcile()
    assert await place.storage.read_tags(TARGET) == TAGS
    head, body = await place.storage.read(TARGET)
    await place.storage.put(TARGET, body, head.headers)  # which drops the tags
    await reconcile()
    assert await place.plaintext() == plaintext


@pytest.mark.parametrize("kind", ["rewrap", "encrypt", "encrypt large", "reseal"])
async def test_a_late_write_is_refused_by_the_server(
    ceph: S3Server, new_bucket: Callable[[S3Server], str], kind: str
) -> None:
    """The storage itself refuses it (moto looks at no signature's time), and nothing changes."""
    async with opened(ceph, new_bucket(ceph)) as storage:
        place = Place(storage, keyring(plaintext=True))
        await place.make(kind)
        view, action, snapshot = await place.plan_action()
        late = replace(snapshot, read_at=snapshot.read_at - timedelta(seconds=60))
        with pytest.raises(RefusedError):
            await place.executor.execute("acme", KEY, view, action, late)
        head, start = await storage.read_start(TARGET, HEADER_BYTES)
        assert (head.headers, start) == (view.head.headers, view.header)
        assert await storage.read_tags(TARGET) == TAGS
