"""A gateway's components over a bucket in memory that can misbehave."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.crypto import BODY_CONTEXT, HEADER_BYTES, Secret, new_dek, seal, user_kek
from keyturn.errors import CodedError, StorageUnavailableError
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.wraps import wrap
from keyturn_workers.gateway.auth import Authenticator, Caller
from keyturn_workers.gateway.keyring_lookups import KeyringLookups
from keyturn_workers.gateway.objects import ObjectOpener
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    enc,
    generation,
    keyring,
)
from tools.harness.customer_keys import HeldCustomerKeys
from tools.harness.local_keys import build_keyring, desired_state, operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    from keyturn_workers.core.keyring import DesiredState, Keyring
    from keyturn_workers.core.storage_port import ObjectStream
    from keyturn_workers.core.storage_values import Lease, ObjectHead
    from keyturn_workers.gateway.objects import ObjectReader
    from keyturn_workers.gateway.request import Span
    from keyturn_workers.keys.keyring.marks import Witness

DEPLOYMENT: Final = "default"
PEPPER: Final = "pepper"
API_KEY: Final = "kt_" + "k" * 43
NEW_API_KEY: Final = "kt_" + "n" * 43
KEY: Final = "reports/q3.pdf"
TARGET: Final = object_s3_key("acme", KEY)
CALLER: Final = {"author": "kim"}
CHUNK: Final = 16384


def kek_of(api_key: str, project: str = "acme") -> Secret:
    """Derive the KEK of an API key."""
    return user_kek(api_key, project, PEPPER)


def ring_of(api_key: str = API_KEY, project: str = "acme") -> Keyring:
    """Return a keyring at generation 1 with this API key."""
    return replace(keyring(project), current=generation(1, kek=kek_of(api_key, project)))


def turned_to(before: Keyring, api_key: str) -> Keyring:
    """Return the keyring after a rotation to this API key."""
    current = generation(before.current.generation + 1, kek=kek_of(api_key, before.project))
    return replace(before, current=current, history=(*before.history, before.current))


class WatchedStorage(MemoryStorage):
    """A bucket that counts requests, and whose streams break where a test says.

    `breaks` holds, for each stream that is opened next, after how many bytes it breaks.
    `reached` happens once a stream has given `pauses_at` bytes; it goes on with `resumed`.
    """

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.open_streams = 0
        self.streamed: list[tuple[int, int | None, str | None]] = []
        self.requested_bytes = 0
        self.given_bytes = 0
        self.breaks: list[int | None] = []
        self.pauses_at: int | None = None
        self.reached: asyncio.Event | None = None
        self.resumed: asyncio.Event | None = None
        self.leases: list[Lease] = []

    async def read_start(
        self, key: str, length_bytes: int, *, version_id: str | None = None
    ) -> tuple[ObjectHead, bytes]:
        self.requested_bytes += length_bytes
        return await super().read_start(key, length_bytes, version_id=version_id)

    async def presign_get(self, key: str, lease: Lease) -> str:
        self.leases.append(lease)
        return await super().presign_get(key, lease)

    @asynccontextmanager
    async def stream(
        self,
        key: str,
        *,
        start: int = 0,
        length_bytes: int | None = None,
        if_match: str | None = None,
        version_id: str | None = None,
    ) -> AsyncIterator[ObjectStream]:
        self.streamed.append((start, length_bytes, if_match))
        breaks = self.breaks.pop(0) if self.breaks else None
        opening = super().stream(
            key,
            start=start,
            length_bytes=length_bytes,
            if_match=if_match,
            version_id=version_id,
        )
        async with opening as stream:
            size = stream.head.size_bytes - start
            self.requested_bytes += size if length_bytes is None else length_bytes
            self.open_streams += 1
            try:
                yield _Watched(self, stream, breaks)
            finally:
                self.open_streams -= 1


class _Watched:
    def __init__(self, storage: WatchedStorage, stream: ObjectStream, breaks: int | None) -> None:
        self.head = stream.head
        self._storage = storage
        self._stream = stream
        self._breaks = breaks

    async def chunks(self, size_bytes: int | None) -> AsyncIterator[bytes]:
        given = 0
        async for piece in self._stream.chunks(size_bytes):
            if self._breaks is not None and given + len(piece) > self._breaks:
                left = piece[: self._breaks - given]
                if left:
                    yield left
                raise StorageUnavailableError("stream: ClientPayloadError")
            given += len(piece)
            self._storage.given_bytes += len(piece)
            yield piece
            await self._pause(given)
        if self._breaks is not None:
            raise StorageUnavailableError("stream: ClientPayloadError")

    async def _pause(self, given: int) -> None:
        storage = self._storage
        if storage.pauses_at is not None and given >= storage.pauses_at and storage.reached:
            storage.pauses_at = None
            storage.reached.set()
            assert storage.resumed is not None
            await storage.resumed.wait()


@dataclass
class Bench:
    """A bucket with one project, an authenticator and an opener."""

    storage: WatchedStorage = field(default_factory=WatchedStorage)
    ring: Keyring = field(default_factory=ring_of)
    cache_s: float = 2.0
    refusal_min_s: float = 0.0
    witness: Witness | None = None
    customer_keys: HeldCustomerKeys = field(default_factory=HeldCustomerKeys)

    def __post_init__(self) -> None:
        self.write_keyring(self.ring)
        self.keyrings = KeyringReader(
            self.storage,
            operator_keys(MASTER_KEYS),
            lease_s=1,
            cache_s=self.cache_s,
            witness=self.witness,
        )
        pepper = Secret(PEPPER.encode())
        self.lookups = KeyringLookups(self.keyrings, self.storage)
        self.auth = Authenticator(
            self.keyrings,
            self.lookups,
            pepper,
            deployment=DEPLOYMENT,
            cache_s=self.cache_s,
            refusal_min_s=self.refusal_min_s,
        )
        keys = OperatorKeys.local(MASTER_KEYS)
        self.opener = ObjectOpener(self.storage, self.auth, keys, self.customer_keys)

    @property
    def desired(self) -> DesiredState:
        return desired_state(self.ring, MASTER_KEYS)

    def write_keyring(self, ring: Keyring) -> None:
        self.ring = ring
        self.storage.plant(
            keyring_s3_key(ring.project), build_keyring(ring, MASTER_KEYS), Headers({})
        )

    def allow_plaintext(self) -> None:
        """Allow plaintext objects in the project."""
        self.write_keyring(replace(self.ring, plaintext_allowed=True))

    def plant(self, own: dict[str, str], body: bytes, key: str = KEY, **more: Any) -> bytes:
        """Put an object with this `enc-` metadata."""
        headers = Headers({**CALLER, **own}, "application/pdf", more.pop("restated", {}))
        self.storage.plant(object_s3_key("acme", key), body, headers, **more)
        return body

    def plant_sealed(self, plaintext: bytes = b"hello", key: str = KEY, **more: Any) -> bytes:
        """Put an encrypted object at the desired state; return its body."""
        dek = new_dek()
        secrets = replace(self.ring.secrets, held=self.customer_keys.secrets)
        wraps = wrap(self.desired, key, dek, secrets)
        return self.plant(enc(wraps), seal(dek, BODY_CONTEXT, plaintext), key, **more)

    async def authenticate(self, api_key: str = API_KEY) -> Caller:
        return await self.auth.authenticate("acme", [f"Bearer {api_key}"])

    @asynccontextmanager
    async def opened(
        self, start_bytes: int | None = None, api_key: str = API_KEY
    ) -> AsyncIterator[ObjectReader]:
        caller = await self.authenticate(api_key)
        async with self.opener.open(caller, KEY, start_bytes=start_bytes) as reader:
            yield reader

    async def open_fails(self, error: type[CodedError], api_key: str = API_KEY) -> str:
        """Check that the object does not open, whole or by its beginning; return the detail."""
        details = set()
        for start_bytes in (None, HEADER_BYTES):
            with pytest.raises(error) as caught:
                async with self.opened(start_bytes, api_key):
                    pass
            details.add(caught.value.detail)
            assert self.storage.open_streams == 0
        (detail,) = details
        return detail

    async def read(self, span: Span | None = None, into: bytearray | None = None) -> bytes:
        """Read the object; `into` keeps what was read before an error."""
        given = bytearray() if into is None else into
        async with self.opened(None if span is None else HEADER_BYTES) as reader:
            if span is not None:
                await reader.verify()
            pieces = reader.read_all() if span is None else reader.read_range(span)
            async for piece in pieces:
                given += piece
        return bytes(given)
