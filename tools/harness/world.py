"""Projects whose keyrings and objects are put directly, by the workers' own code (SPEC 4, 5).

For the bench and for large deployments: objects are sealed and put without a request, in the form
in which an upload stores them.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from keyturn.crypto import (
    BODY_CONTEXT,
    Secret,
    kek_id,
    new_api_key,
    new_dek,
    seal,
    sealed_size,
    user_kek,
)
from keyturn.identifiers import object_s3_key
from keyturn.messages import RequestOrigin
from keyturn_workers.core.body_stream import seal_stream
from keyturn_workers.core.customer_keys import NO_SECRETS
from keyturn_workers.core.keyring import Generation, Keyring, rotate
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.sweep_record import (
    KeyRange,
    OpenPage,
    ProjectRecord,
    Round,
    State,
)
from keyturn_workers.core.wraps import build_object_metadata, wrap
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.keyring.store import create_keyring, replace_keyring
from keyturn_workers.keys.sweep_records import SweepStore
from keyturn_workers.storage.probe.runner import probe
from keyturn_workers.storage.s3 import S3Storage, open_storage
from tools.harness.local_keys import operator_keys
from tools.harness.marks import mark_keyrings
from tools.harness.requests import new_id, now

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Sequence,
    )

    from keyturn_workers.core.customer_key_port import CustomerKeys
    from keyturn_workers.core.customer_keys import CustomerSecrets, KeyName
    from keyturn_workers.core.keyring import DesiredState
    from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
    from tools.harness.deployment import Deployment

MASTER_KEY = "m1"
LEASE_S = 15
_CACHE_S = 2
_LOADED_AT_ONCE = 64
_CONNECTIONS = 96
_PIECE_BYTES = 2**20
_CONTENT_TYPE = "application/octet-stream"


def key_of(number: int) -> str:
    """The key of an object; in the order of their numbers."""
    return f"o/{number:08}"


@dataclass(frozen=True)
class World:
    """A deployment's bucket, as workers read and write it."""

    deployment: Deployment
    storage: S3Storage
    keyrings: KeyringReader
    store: SweepStore
    keys: OperatorKeys
    customer_keys: CustomerKeys | None = None
    api_keys: dict[str, str] = field(default_factory=dict)
    """The current API key by project."""

    async def enroll(self, project: str, customer_key: KeyName | None = None) -> None:
        """Put the project's first keyring, which may need a customer key."""
        kek = self._new_kek(project)
        first = Generation(1, kek_id(kek), kek, new_id(), now(), now())
        if customer_key is not None:
            assert self.customer_keys is not None, "the world was opened without customer keys"
            made = await self.customer_keys.create(project, customer_key)
            first = replace(first, customer_key=made)
        origin = RequestOrigin("api", "0" * 64)
        keyring = Keyring(project, MASTER_KEY, first, origin, self.keyrings.lease_s)
        if not await create_keyring(
            self.storage,
            keyring,
            self.keys,
            lease_s=self.keyrings.lease_s,
        ):
            raise RuntimeError(f"the project {project} already exists")
        await mark_keyrings(self.deployment, project)

    async def turn(self, project: str) -> None:
        """Turn the project to a new API key."""
        observed = await self.keyrings.read_fresh(project)
        after = rotate(
            observed.keyring,
            kek=self._new_kek(project),
            rotation_id=new_id(),
            requested_at=now(),
            at=now(),
            origin=RequestOrigin("bench", "0" * 64),
        )
        if not await replace_keyring(
            self.storage,
            after,
            observed.etag,
            self.keys,
            lease_s=self.keyrings.lease_s,
        ):
            raise RuntimeError(f"the keyring of {project} was changed meanwhile")
        await mark_keyrings(self.deployment, project)

    def _new_kek(self, project: str) -> Secret:
        self.api_keys[project] = new_api_key()
        return user_kek(self.api_keys[project], project)

    async def record_with(
        self, project: str, pages: tuple[OpenPage, ...]
    ) -> tuple[ProjectRecord, Round]:
        """A record of the project's present state, with a round of these pages alone."""
        observed = await self.keyrings.read_fresh(project)
        of = Round(
            new_id(), SweepOptions(), (), (KeyRange(planned=True),), pages, next_page=len(pages)
        )
        record = ProjectRecord(
            project,
            State.of(observed.keyring),
            observed.lease.read_at,
            lease_s=LEASE_S,
            stepped_lease_s=LEASE_S,
            round=of,
        )
        return record, of

    async def load_copies(self, project: str, count: int) -> None:
        """Put `count` empty objects that only listings can use: the same bytes under each key."""
        desired = (await self.keyrings.read_fresh(project)).desired
        dek = new_dek()
        body, headers = seal(dek, BODY_CONTEXT, b""), _headers(desired, key_of(0), dek)

        async def put(number: int) -> None:
            await self.storage.put(object_s3_key(project, key_of(number)), body, headers)

        await _for_each(range(count), put)

    async def load(self, project: str, count: int, size_bytes: int) -> None:
        """Put `count` small objects, sealed with the project's present keyring."""
        observed = await self.keyrings.read_fresh(project)
        desired, secrets = observed.desired, NO_SECRETS
        if self.customer_keys is not None:
            secrets = await self.customer_keys.unlock(observed.keyring)
        plaintext = os.urandom(size_bytes)

        async def put(number: int) -> None:
            dek = new_dek()
            headers = _headers(desired, key_of(number), dek, secrets)
            s3_key = object_s3_key(project, key_of(number))
            await self.storage.put(s3_key, seal(dek, BODY_CONTEXT, plaintext), headers)

        await _for_each(range(count), put)

    async def load_large(self, project: str, key: str, size_bytes: int) -> str:
        """Put one object of this size, streamed; gives the SHA-256 of its plaintext, in hex."""
        desired = (await self.keyrings.read_fresh(project)).desired
        dek, block = new_dek(), os.urandom(_PIECE_BYTES)
        hashed = hashlib.sha256()

        async def plaintext() -> AsyncIterator[bytes]:
            for at in range(0, size_bytes, _PIECE_BYTES):
                piece = block[: min(_PIECE_BYTES, size_bytes - at)]
                hashed.update(piece)
                yield piece

        await self.storage.put_stream(
            object_s3_key(project, key),
            seal_stream(plaintext(), dek),
            sealed_size(size_bytes),
            _headers(desired, key, dek),
        )
        return hashed.hexdigest()


async def _for_each(numbers: Iterable[int], act: Callable[[int], Awaitable[None]]) -> None:
    """Do this for each number, a few at once."""
    remaining = iter(numbers)

    async def work() -> None:
        for number in remaining:
            await act(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(_LOADED_AT_ONCE):
            group.create_task(work())


def _headers(
    desired: DesiredState, key: str, dek: bytes, secrets: CustomerSecrets = NO_SECRETS
) -> Headers:
    wraps = wrap(desired, key, dek, secrets)
    metadata = build_object_metadata(wraps, upload_id=new_id(), caller_wire={})
    return Headers(metadata, _CONTENT_TYPE)


def pages_of(keys: Sequence[str], page_keys: int, *, after: str = "") -> list[tuple[str, str]]:
    """Pages that touch each other over keys in their order: the key before, and the last one."""
    lasts = [keys[min(at + page_keys, len(keys)) - 1] for at in range(0, len(keys), page_keys)]
    return list(zip([after, *lasts[:-1]], lasts, strict=True))


@asynccontextmanager
async def open_world(
    deployment: Deployment, customer_keys: CustomerKeys | None = None
) -> AsyncIterator[World]:
    """The bucket, with a reader of keyrings and the records of sweeps."""
    settings = deployment.s3_settings()
    keys = operator_keys({MASTER_KEY: Secret(deployment.master_key)})
    async with open_storage(settings) as storage:
        capabilities = (await probe(storage, quick=True)).capabilities
    async with open_storage(
        settings, capabilities=capabilities, max_connections=_CONNECTIONS
    ) as storage:
        yield World(
            deployment,
            storage,
            KeyringReader(storage, keys, lease_s=LEASE_S, cache_s=_CACHE_S),
            SweepStore(storage, keys),
            keys,
            customer_keys,
        )
