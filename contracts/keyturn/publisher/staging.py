"""Bodies above the inline limit: sealed while they stream into the bucket (SPEC 6.4).

A body up to 8 MiB is one put, a larger one a multipart upload of 8 MiB parts, a few at a time.
Memory is bounded whatever the body's length, which need not be known. A failed multipart
upload is aborted, so that nothing of it is left behind. Each body is sent with its MD5: some
servers store what arrived before a connection was lost.
It must never write a byte of plaintext.
"""

import asyncio
import hashlib
import logging
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, TypeVar

from keyturn.crypto import Sealer
from keyturn.errors import BodyTooLargeError, StorageUnavailableError
from keyturn.tls import STORAGE
from keyturn.tls_failures import describe_tls_failure

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import CompletedPartTypeDef

_log = logging.getLogger(__name__)

PART_BYTES: Final = 8 * 1024 * 1024
MAX_PARTS: Final = 10_000  # S3's own limit
CONNECTIONS: Final = 16
_PARTS_AT_ONCE: Final = 3
# Some servers guess a missing one from the body, which is ciphertext.
_CONTENT_TYPE: Final = "application/octet-stream"
_Answer = TypeVar("_Answer")


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
        async with aclosing(_parts(_sealed(sealer, head, rest))) as parts:
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
        except BaseException:  # a cancellation too must leave no open upload behind
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
        etags: dict[int, str] = {}
        slots = asyncio.Semaphore(_PARTS_AT_ONCE)
        size_bytes = number = 0

        async def send(part: bytes, part_number: int) -> None:
            try:
                answer = await _translated(
                    self._client.upload_part(
                        Bucket=self._bucket,
                        Key=s3_key,
                        UploadId=upload_id,
                        PartNumber=part_number,
                        Body=part,
                        ContentMD5=await _md5(part),
                    )
                )
                etags[part_number] = answer["ETag"]
            finally:
                slots.release()

        try:
            async with asyncio.TaskGroup() as group:
                async for part in _chain(first, rest):
                    number += 1
                    if number > MAX_PARTS:
                        raise BodyTooLargeError("a staged body has at most 10,000 parts of 8 MiB")
                    # Bounds memory: the parts in flight, and one being filled.
                    await slots.acquire()
                    size_bytes += len(part)
                    group.create_task(send(part, number))
        except BaseExceptionGroup as exc:
            raise exc.exceptions[0] from exc
        return size_bytes, [{"PartNumber": n, "ETag": etag} for n, etag in sorted(etags.items())]


async def _md5(body: bytes) -> str:
    """`Content-MD5`: by it a server notices a body that a lost connection cut short."""
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


async def _parts(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The pieces as parts of 8 MiB, the last one shorter; at least one part."""
    part = bytearray()
    async for piece in pieces:
        part += piece
        while len(part) > PART_BYTES:
            yield bytes(memoryview(part)[:PART_BYTES])
            del part[:PART_BYTES]
    yield bytes(part)


async def _translated(call: Awaitable[_Answer]) -> _Answer:
    """Await a call of the storage and translate its errors; those of a body's source pass."""
    from aiohttp import ClientError as HttpError  # noqa: PLC0415  # comes with aioboto3
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    try:
        return await call
    except ClientError as exc:
        code = exc.response.get("Error", {}).get("Code", "no code")
        raise StorageUnavailableError(f"staging failed ({code})") from exc
    except (BotoCoreError, HttpError, TimeoutError) as exc:
        problem = describe_tls_failure(exc, STORAGE) or type(exc).__name__
        raise StorageUnavailableError(f"staging failed ({problem})") from exc
