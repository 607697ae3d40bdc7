"""A repeated enrollment while the storage denies that the keyring exists (SPEC 6.5, 8.6)."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import Secret
from keyturn.errors import AlreadyEnrolledError, StorageUnavailableError, UnknownProjectError
from keyturn.identifiers import keyring_s3_key
from keyturn.messages import EnrollRequested, RequestOrigin, parse_request
from keyturn_workers.control.enrollment import Enroller
from tools.harness import requests as rq
from tools.harness.deployment import Deployment
from tools.harness.local_keys import operator_keys
from tools.servers import S3Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEYRING = keyring_s3_key("acme")


class _Bucket:
    """Its listings are true, but it answers 404 to every read of a keyring."""

    lease_s = 15

    def __init__(self, *keys: str) -> None:
        self.keys = keys

    async def list(self, prefix: str, *, limit: int | None = None) -> AsyncIterator[Any]:
        for key in [key for key in self.keys if key.startswith(prefix)][:limit]:
            yield SimpleNamespace(key=key)

    async def read_fresh(self, project: str) -> Any:
        raise UnknownProjectError(project)


async def _enroll(*keys: str) -> int:
    s3 = S3Server("http://127.0.0.1:1", "key", "secret", "us-east-1", "given")
    deployment = Deployment("amqp://127.0.0.1:1", s3, "bucket")
    bucket: Any = _Bucket(*keys)
    masters = {"m1": Secret(deployment.master_key)}
    enroller = Enroller(
        bucket, bucket, operator_keys(masters), "m1", {"main": deployment.intake}, bucket
    )
    body = json.dumps(rq.enroll(deployment, "acme")).encode()
    request = parse_request(body)
    assert isinstance(request, EnrollRequested)
    return await enroller.enroll(request, RequestOrigin.of("api", body))


async def test_a_keyring_that_is_listed_but_not_found_does_not_refuse_an_enrollment() -> None:
    """The read was wrong: retried later, not refused permanently as `already_enrolled`."""
    with pytest.raises(StorageUnavailableError):
        await _enroll("acme/a.bin", KEYRING)


@pytest.mark.parametrize("other", ["acme/b.bin", f"{KEYRING}.old"])
async def test_objects_without_a_keyring_refuse_an_enrollment(other: str) -> None:
    with pytest.raises(AlreadyEnrolledError):
        await _enroll("acme/a.bin", other)
