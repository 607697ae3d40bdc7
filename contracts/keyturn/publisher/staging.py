"""Bodies: read in small blocks, and above the inline limit sealed into the bucket (SPEC 6.4).

A body has any form that `Body` allows. Memory holds one block and the parts in flight, whatever the
length, which need not be known. Files are read in a thread.

A staged body up to 8 MiB is one put, a larger one a multipart upload of 8 MiB parts, a few at a
time. A failed multipart upload is aborted, so that nothing of it is left behind. Each body is sent
with its MD5: some servers store a partial body after a lost connection.

If the outcome of a staged upload is unknown, its request is kept for a retry with the same body.
Staging the body again would seal it under another transport key, and the first message, if it is on
the queue after all, could not open it.

It must never write a byte of plaintext, and never keep a body or a transport key.
"""

import asyncio
import hashlib
import logging
import time
from base64 import b64encode
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, TypeVar

from keyturn.crypto.cobblestone import Sealer
from keyturn.errors import BodyTooLargeError, StorageUnavailableError
from keyturn.messages.requests import UploadRequested
from keyturn.parts import MAX_PARTS, send_parts, split_into_parts
from keyturn.tls import STORAGE, describe_connection_failure

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import CompletedPartTypeDef

_log = logging.getLogger(__name__)

BLOCK_BYTES: Final = 1024 * 1024
Bytes = bytes | bytearray | memoryview
Body = Bytes | Path | BinaryIO | AsyncIterable[bytes]
PART_BYTES: Final = 8 * 1024 * 1024
CONNECTIONS: Final = 16
_PARTS_AT_ONCE: Final = 3
# Some servers guess a missing type from the body, which is ciphertext.
_CONTENT_TYPE: Final = "application/octet-stream"
_Answer = TypeVar("_Answer")
MAX_PENDING: Final = 1024
MAX_AGE_S: Final = 24 * 3600.0


async def blocks(body: Body) -> AsyncGenerator[memoryview, None]:
    """Yield the body's bytes in order, at most 1 MiB at a time, never an empty block.

    Raises:
        TypeError: not a `Body`, or a source that yields anything but bytes.
        OSError: a file cannot be read.
    """
    if isinstance(body, bytes | bytearray | memoryview):
        for block in _cut(body):
            yield block
    elif isinstance(body, Path):
        file = await asyncio.to_thread(body.open, "rb")
        try:
            async with aclosing(_file_blocks(file)) as read:
                async for block in read:
                    yield block
        finally:
            await asyncio.to_thread(file.close)
    elif isinstance(body, AsyncIterable):
        async for piece in body:
            for block in _cut(piece):
                yield block
    elif callable(getattr(body, "read", None)):
        async with aclosing(_file_blocks(body)) as read:
            async for block in read:
                yield block
    else:
        raise TypeError(f"a body cannot be a {type(body).__name__}")


async def _file_blocks(file: BinaryIO) -> AsyncGenerator[memoryview, None]:
    while piece := await asyncio.to_thread(file.read, BLOCK_BYTES):
        for block in _cut(piece):
            yield block


def _cut(piece: object) -> list[memoryview]:
    if not isinstance(piece, bytes | bytearray | memoryview):
        raise TypeError(f"a body consists of bytes, not of {type(piece).__name__}")
    view = memoryview(piece).cast("B")
    return [view[start : start + BLOCK_BYTES] for start in range(0, len(view), BLOCK_BYTES)]


async def head(source: AsyncIterator[memoryview], limit_bytes: int) -> tuple[bytearray, bool]:
    """Return the beginning of the source, and whether that is all of it.

    If the source has more than `limit_bytes`, up to one block more than that is returned.
    """
    gathered = bytearray()
    async for block in source:
        gathered += block
        if len(gathered) > limit_bytes:
            return gathered, False
    return gathered, True


class Staging:
    """The staging area of one bucket.

    Args:
        client: An open S3 client.
        bucket: The bucket's name.
    """

    def __init__(self, client: "S3Client", bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    async def put(
        self, s3_key: str, sealer: Sealer, head: bytearray, rest: AsyncIterator[memoryview]
    ) -> int:
        """Seal `head` and then `rest` into an object; return its size in bytes.

        Raises:
            StorageUnavailableError: the storage refused, or could not be reached.
            BodyTooLargeError: the body is larger than 10,000 parts of 8 MiB.
        """
        sealed = _sealed(sealer, head, rest)
        async with aclosing(split_into_parts(sealed, PART_BYTES)) as parts:
            first = await anext(parts)
            second = await anext(parts, None)
            if second is not None:
                return await self._multipart(s3_key, (first, second), parts)
            await _translated(
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=s3_key,
                    Body=first,
                    ContentMD5=await _md5(first),
                    ContentType=_CONTENT_TYPE,
                )
            )
            return len(first)

    async def delete(self, s3_key: str) -> None:
        """Delete a body that no worker will read; if that fails, the workers remove it later."""
        try:
            await _translated(self._client.delete_object(Bucket=self._bucket, Key=s3_key))
        except StorageUnavailableError as exc:
            _log.warning("a staged body could not be deleted: %s", exc.detail)

    async def _multipart(
        self, s3_key: str, first: Iterable[bytes], rest: AsyncIterator[bytes]
    ) -> int:
        created = await _translated(
            self._client.create_multipart_upload(
                Bucket=self._bucket, Key=s3_key, ContentType=_CONTENT_TYPE
            )
        )
        upload_id = created["UploadId"]
        try:
            size_bytes, parts = await self._send_parts(s3_key, upload_id, first, rest)
            await _translated(
                self._client.complete_multipart_upload(
                    Bucket=self._bucket,
                    Key=s3_key,
                    UploadId=upload_id,
                    MultipartUpload={"Parts": parts},
                )
            )
        except BaseException:  # a cancellation, too, must leave no open upload behind
            await asyncio.shield(self._abort(s3_key, upload_id))
            raise
        return size_bytes

    async def _abort(self, s3_key: str, upload_id: str) -> None:
        try:
            await _translated(
                self._client.abort_multipart_upload(
                    Bucket=self._bucket, Key=s3_key, UploadId=upload_id
                )
            )
        except StorageUnavailableError as exc:
            _log.warning("a multipart upload to staging could not be aborted: %s", exc.detail)

    async def _send_parts(
        self, s3_key: str, upload_id: str, first: Iterable[bytes], rest: AsyncIterator[bytes]
    ) -> "tuple[int, list[CompletedPartTypeDef]]":
        async def send(number: int, part: bytes) -> "tuple[int, CompletedPartTypeDef]":
            if number > MAX_PARTS:
                raise BodyTooLargeError("a staged body has at most 10,000 parts of 8 MiB")
            answer = await _translated(
                self._client.upload_part(
                    Bucket=self._bucket,
                    Key=s3_key,
                    UploadId=upload_id,
                    PartNumber=number,
                    Body=part,
                    ContentMD5=await _md5(part),
                )
            )
            return len(part), {"PartNumber": number, "ETag": answer["ETag"]}

        sent = await send_parts(_chain(first, rest), send, at_once=_PARTS_AT_ONCE)
        return sum(size_bytes for size_bytes, _ in sent), [part for _, part in sent]


async def _md5(body: bytes) -> str:
    """Return `Content-MD5`, by which a server notices a body cut short by a lost connection."""
    digest = await asyncio.to_thread(hashlib.md5, body, usedforsecurity=False)
    return b64encode(digest.digest()).decode()


async def _chain(first: Iterable[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for part in first:
        yield part
    async for part in rest:
        yield part


async def _sealed(
    sealer: Sealer, head: bytearray, rest: AsyncIterator[memoryview]
) -> AsyncIterator[bytes]:
    yield sealer.header
    yield sealer.update(head)
    async for block in rest:
        yield sealer.update(block)
    yield sealer.finish()


async def _translated(call: Awaitable[_Answer]) -> _Answer:
    """Await a call of the storage and translate its errors; errors of a body's source pass."""
    from aiohttp import ClientError as HttpError  # noqa: PLC0415  # comes with aioboto3
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    try:
        return await call
    except ClientError as exc:
        code = exc.response.get("Error", {}).get("Code", "no code")
        raise StorageUnavailableError(f"staging failed ({code})") from exc
    except (BotoCoreError, HttpError, TimeoutError) as exc:
        problem = describe_connection_failure(exc, STORAGE) or "the connection was lost"
        raise StorageUnavailableError(f"staging failed ({problem})") from exc


@dataclass(frozen=True, slots=True)
class _Sent:
    request: UploadRequested
    at_s: float


class PendingUploads:
    """Requests sent without a confirmation, by upload id."""

    def __init__(self) -> None:
        self._sent: OrderedDict[str, _Sent] = OrderedDict()

    def earlier(self, request: UploadRequested) -> UploadRequested | None:
        """Return the earlier request for this upload of this object, if it may be on the queue."""
        sent = self._sent.get(request.upload_id)
        if sent is None or not _is_of_one_object(sent.request, request):
            return None
        return sent.request if time.monotonic() - sent.at_s < MAX_AGE_S else None

    def remember(self, request: UploadRequested) -> None:
        """Keep a request whose outcome is unknown."""
        before = self._sent.pop(request.upload_id, None)
        # Its age is that of the body in staging.
        again = before is not None and before.request.sealed_key == request.sealed_key
        at_s = before.at_s if before is not None and again else time.monotonic()
        self._sent[request.upload_id] = _Sent(request, at_s)
        while len(self._sent) > MAX_PENDING:
            self._sent.popitem(last=False)

    def forget(self, upload_id: str) -> None:
        """Drop a request that the broker has confirmed."""
        self._sent.pop(upload_id, None)


def _is_of_one_object(one: UploadRequested, other: UploadRequested) -> bool:
    return (one.project, one.key) == (other.project, other.key)
