"""The four requests that every client is measured with, and how a plain HTTP client makes them.

A put of 4 KiB with the metadata of an upload's object, its MD5 and `If-None-Match`; a read
of the first 64 bytes; a head; a copy onto itself with other metadata, if the ETag is still
the same. Writes are signed in the query and end with their lease, as the product's are
(SPEC 8.4), where a client can do that.
"""

from __future__ import annotations

import hashlib
import os
from base64 import b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from botocore.credentials import ReadOnlyCredentials

from keyturn_workers.storage.port import Lease
from keyturn_workers.storage.signing import Signed, Signer
from tools.bench.bare import METADATA

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

BODY: Final = bytes(range(256)) * 16
RANGE_BYTES: Final = 64
LEASE_S: Final = 60
CONNECTIONS: Final = 64
CONTENT_TYPE: Final = "application/octet-stream"
EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
_SAID: Final = {
    "content-type": CONTENT_TYPE,
    **{f"x-amz-meta-{name}": value for name, value in METADATA.items()},
}


class RefusedError(Exception):
    """An answer that is not the one of a request that was done."""


class UnsupportedError(Exception):
    """The client has no such request; its table shows a dash, and its text says why."""


class Client(Protocol):
    """One way to do it. Each call raises where the server did not do what was asked."""

    async def put(self, key: str) -> str:
        """Store the body where nothing stands; gives the ETag without quotes."""
        ...

    async def get(self, key: str) -> None:
        """Read the first bytes."""
        ...

    async def head(self, key: str) -> None:
        """Read the head."""
        ...

    async def copy(self, key: str, etag: str) -> None:
        """Replace the metadata."""
        ...


@dataclass(frozen=True)
class Place:
    """Where the bucket is, and the keys."""

    endpoint_url: str
    bucket: str
    region: str
    access_key_id: str
    secret_access_key: str = field(repr=False)

    @classmethod
    def from_environment(cls) -> Place:
        """From `KEYTURN_S3_…`."""
        environ = os.environ
        return cls(
            environ["KEYTURN_S3_ENDPOINT_URL"],
            environ["KEYTURN_S3_BUCKET"],
            environ["KEYTURN_S3_REGION"],
            environ["KEYTURN_S3_ACCESS_KEY_ID"],
            environ["KEYTURN_S3_SECRET_ACCESS_KEY"],
        )

    @property
    def host(self) -> str:
        """Name and port."""
        return self.endpoint_url.partition("//")[2]

    @property
    def base_url(self) -> str:
        """The bucket's."""
        return f"{self.endpoint_url}/{self.bucket}/"

    @property
    def credentials(self) -> ReadOnlyCredentials:
        return ReadOnlyCredentials(self.access_key_id, self.secret_access_key, None)


def lease() -> Lease:
    """One that begins now, as a worker's does within a second of its keyring's read."""
    return Lease(datetime.now(UTC), LEASE_S)


def put_headers() -> dict[str, str]:
    """What a put says, with the MD5 of the body."""
    md5 = hashlib.md5(BODY, usedforsecurity=False).digest()
    return {**_SAID, "if-none-match": "*", "content-md5": b64encode(md5).decode()}


def copy_headers(place: Place, key: str, etag: str) -> dict[str, str]:
    """What a copy onto itself says."""
    return {
        **_SAID,
        "x-amz-copy-source": f"/{place.bucket}/{key}",
        "x-amz-copy-source-if-match": etag,
        "x-amz-metadata-directive": "REPLACE",
    }


class Signs(Protocol):
    """Signs a request for a key: in its query until the lease's end, or else in its header."""

    def __call__(
        self, method: str, key: str, headers: dict[str, str], lease: Lease | None
    ) -> Signed: ...


def product_signer(place: Place) -> Signs:
    """The product's own."""
    credentials = place.credentials
    signer = Signer(place.base_url, place.region)

    def signed(method: str, key: str, headers: dict[str, str], lease: Lease | None) -> Signed:
        return signer.sign(
            method,
            key,
            headers,
            credentials=credentials,
            payload_sha256=EMPTY_SHA256,
            lease=lease,
        )

    return signed


@dataclass(frozen=True)
class Answer:
    """A whole answer. `headers` takes names in lower case."""

    status: int
    headers: Mapping[str, Any]
    body: bytes


class PlainHttp:
    """Any HTTP client and a signer.

    Args:
        place: Where to.
        send: Method, signed request and body (empty for none) to a whole answer.
        signer: The product's own where none is given.
    """

    def __init__(
        self,
        place: Place,
        send: Callable[[str, Signed, bytes], Awaitable[Answer]],
        signer: Signs | None = None,
    ) -> None:
        self._place = place
        self._send = send
        self._sign = signer or product_signer(place)

    async def put(self, key: str) -> str:
        signed = self._sign("PUT", key, put_headers(), lease())
        answer = await self._send("PUT", signed, BODY)
        _check(answer, 200)
        return str(answer.headers["etag"]).strip('"')

    async def get(self, key: str) -> None:
        ranged = {"range": f"bytes=0-{RANGE_BYTES - 1}"}
        answer = await self._send("GET", self._sign("GET", key, ranged, None), b"")
        _check(answer, 206)
        if len(answer.body) != RANGE_BYTES:
            raise RefusedError(f"{len(answer.body)} bytes")

    async def head(self, key: str) -> None:
        answer = await self._send("HEAD", self._sign("HEAD", key, {}, None), b"")
        _check(answer, 200)

    async def copy(self, key: str, etag: str) -> None:
        headers = copy_headers(self._place, key, etag)
        signed = self._sign("PUT", key, headers, lease())
        answer = await self._send("PUT", signed, b"")
        _check(answer, 200)
        if b"<CopyObjectResult" not in answer.body:
            raise RefusedError("the copy failed within its answer")


def _check(answer: Answer, status: int) -> None:
    if answer.status != status:
        raise RefusedError(f"{answer.status}: {answer.body[:200].decode(errors='replace')}")
