"""Nothing of an object is read before its caller is authenticated (SPEC 9.1)."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import Secret, kek_id, new_api_key, user_kek
from keyturn.errors import CodedError, UnauthorizedError
from keyturn_workers.gateway.auth import Authenticator
from keyturn_workers.gateway.fair_shares import ConcurrencyLimit
from keyturn_workers.gateway.keyring_lookups import KeyringLookups
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.gateway.object_opener import ObjectOpener
from keyturn_workers.gateway.object_routes import ObjectRoutes
from keyturn_workers.keyring import Generation, Keyring, KeyringReader, create_keyring
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.testing.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

    from keyturn_workers.gateway.auth import Caller

_API_KEY = new_api_key()
_MASTER = {"m1": Secret(os.urandom(32))}
_OPERATIONS = ("read", "read_start", "head", "stream", "list", "presign_get")


class _Watched(MemoryStorage):
    """Records the S3 key of every read."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in _OPERATIONS:
            return found

        def watched(key: str, *arguments: Any, **more: Any) -> Any:
            self.seen.append(key)
            return found(key, *arguments, **more)

        return watched


async def _no_put(request: Request, caller: Caller, key: str) -> Response:
    raise AssertionError((request, caller, key))


@pytest.fixture
async def storage() -> AsyncIterator[_Watched]:
    watched = _Watched()
    kek = user_kek(_API_KEY, "acme")

    entry = Generation(
        1, kek_id(kek), kek, str(uuid.uuid4()), "2026-11-24T10:00:00Z", "2026-11-24T10:00:00Z"
    )
    await create_keyring(watched, Keyring("acme", "m1", entry), _MASTER, lease_s=15)
    watched.seen.clear()
    return watched


async def _ask(storage: _Watched, method: str, project: str, authorization: str) -> None:
    keyrings = KeyringReader(storage, _MASTER, lease_s=1, cache_s=0)
    auth = Authenticator(
        keyrings, KeyringLookups(keyrings, storage), Secret(b""), cache_s=0, refusal_min_s=0
    )
    opener = ObjectOpener(storage, auth, OperatorKeys(_MASTER), v0_max_bytes=1, v0_concurrency=1)
    limit = ConcurrencyLimit(4, 1.0, "requests")
    objects = ObjectRoutes(auth, limit, opener, _no_put, GatewayMetrics(), presign_plaintext=True)
    headers = [(b"authorization", authorization.encode())]
    raw = f"/v1/projects/{project}/objects/x".encode()
    scope = {"type": "http", "method": method, "raw_path": raw, "headers": headers}

    async def receive() -> dict[str, Any]:
        raise AssertionError("nothing is taken of a body")

    async def send(message: Any) -> None:
        raise AssertionError(message)

    await objects(scope, receive, send)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
@pytest.mark.parametrize("authorization", ["", "Bearer ", f"Bearer {'x' * 40}", "Basic abc"])
@pytest.mark.parametrize(
    ("project", "reads"),
    [
        ("acme", [".keyturn/keyrings/acme.json"]),
        ("nosuch", [".keyturn/keyrings/nosuch.json"]),
        ("NoSuch", []),
        (".keyturn", []),
        ("..", []),
    ],
)
async def test_an_unauthorized_request_reads_at_most_a_keyring(
    storage: _Watched, method: str, authorization: str, project: str, reads: list[str]
) -> None:
    with pytest.raises(UnauthorizedError):
        await _ask(storage, method, project, authorization)
    assert storage.seen == reads


async def test_the_holder_of_the_key_reads_the_object(storage: _Watched) -> None:
    """The refusals above must not have another reason."""
    with pytest.raises(CodedError, match="no object has this key"):
        await _ask(storage, "GET", "acme", f"Bearer {_API_KEY}")
    assert storage.seen == [".keyturn/keyrings/acme.json", "acme/x"]
