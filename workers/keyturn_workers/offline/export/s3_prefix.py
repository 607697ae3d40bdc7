"""A prefix of an S3 bucket as the destination of an export.

An object appears once its whole body was authenticated: the storage gets the last bytes only then.
The manifest is written in parts, each after the objects that it names. So an export that was killed
may store the objects of its last seconds again, and skips none. A line whose object is missing, or
has another size or ETag, is ignored.
"""

import io
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Final, Self
from uuid import uuid4

from keyturn.errors import MalformedRequestError
from keyturn.identifiers import OBJECT_KEY_MAX_BYTES, OWN_PREFIX
from keyturn.metadata import encode_caller_metadata
from keyturn.parts import part_size, send_parts, split_into_parts
from keyturn_workers.core.errors import ExportError, RefusedError
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import Headers, WriteResult
from keyturn_workers.offline.export.manifest import MANIFEST, Index, first_line, parse_lines
from keyturn_workers.offline.export.run import BLOCK_BYTES, Incoming
from keyturn_workers.storage.multipart import open_multipart

PREFIX_MAX_BYTES: Final = 1024 - OBJECT_KEY_MAX_BYTES - 1
"""S3 allows 1024 bytes for a key; `_path` may add one."""
SINGLE_PUT_MAX_BYTES: Final = 64 * 1024**2
PART_BYTES: Final = 8 * 1024**2
_LINES_MAX: Final = 1000
_FLUSH_S: Final = 5.0
_OWN: Final = re.compile(rf"~*{MANIFEST}/")


class S3Prefix:
    """A prefix that holds one export. Use `open`."""

    def __init__(self, storage: Storage, prefix: str, project: str, index: Index) -> None:
        self._storage = storage
        self._prefix = prefix
        self._project = project
        self._index = index
        self._lines: dict[str, bytes] = {}
        self._flushed_at_s = time.monotonic()

    @classmethod
    @asynccontextmanager
    async def open(cls, storage: Storage, prefix: str, project: str) -> AsyncIterator[Self]:
        """Yield the prefix, empty or with a `/` at its end, as the destination of a project.

        Raises:
            ExportError: the prefix has other contents, or the bucket is one of Keyturn.
            StorageUnavailableError, StorageResponseError: it cannot be read or written.
        """
        with suppress(RefusedError):  # credentials may be for the prefix alone
            async for _ in storage.list(OWN_PREFIX, limit=1):
                raise ExportError(
                    f"the destination is a bucket of Keyturn, with {OWN_PREFIX}: use another one"
                )
        with closing(Index()) as index:
            opened = cls(storage, prefix, project, index)
            if not await opened._continue():
                async for row in storage.list(prefix, limit=1):
                    raise ExportError(
                        f"there are objects under {prefix!r} (such as {row.key!r}), and no "
                        f"{MANIFEST}/ to continue from"
                    )
                # This claims the prefix, and shows early that it can be written.
                await opened._put_lines({})
            try:
                yield opened
            finally:
                await opened._flush()

    async def _continue(self) -> bool:
        found = False
        async for row in self._storage.list(f"{self._prefix}{MANIFEST}/"):
            _, text = await self._storage.read(row.key)
            for record in parse_lines(io.BytesIO(text), row.key, self._project):
                self._index.add(record)
            found = True
        if found:
            async for row in self._storage.list(self._prefix):
                path = row.key.removeprefix(self._prefix)
                self._index.add_stored(path, row.size_bytes, row.etag)
        return found

    async def size_of(self, key: str) -> int | None:
        """Return the size of an object that was there, as exported, when this run began."""
        return self._index.find_stored(key)

    async def store(self, incoming: Incoming) -> bool:
        """Store an object, with its content type and metadata."""
        record_path = _path(incoming.key)
        s3_key = f"{self._prefix}{record_path}"
        headers = Headers(_wire(incoming.info.metadata), incoming.info.content_type)
        if incoming.info.size_bytes <= BLOCK_BYTES:
            body = b"".join([block async for block in incoming.blocks()])
            written = await self._storage.put(s3_key, body, headers)
        elif incoming.info.size_bytes <= SINGLE_PUT_MAX_BYTES:
            blocks = incoming.blocks()
            size_bytes = incoming.info.size_bytes
            written = await self._storage.put_stream(s3_key, blocks, size_bytes, headers)
        else:
            written = await self._store_in_parts(s3_key, incoming, headers)
        record = incoming.record(record_path, written.etag)
        self._lines[record.key] = record.line()
        if len(self._lines) >= _LINES_MAX or time.monotonic() - self._flushed_at_s >= _FLUSH_S:
            await self._flush()
        return True

    async def _store_in_parts(
        self, s3_key: str, incoming: Incoming, headers: Headers
    ) -> WriteResult:
        part_bytes = part_size(incoming.info.size_bytes, PART_BYTES)
        async with open_multipart(self._storage, s3_key, headers) as upload_id:
            put = partial(self._storage.upload_part, s3_key, upload_id)
            bodies = split_into_parts(incoming.blocks(), part_bytes)
            # Many objects may be exported at once, each with its parts in memory.
            parts = await send_parts(bodies, put, at_once=1)
            return await self._storage.complete_multipart(s3_key, upload_id, parts)

    async def _flush(self) -> None:
        lines, self._lines = self._lines, {}
        if not lines:
            return
        try:
            await self._put_lines(lines)
        except BaseException:
            self._lines = lines | self._lines
            raise
        self._flushed_at_s = time.monotonic()

    async def _put_lines(self, lines: dict[str, bytes]) -> None:
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{uuid4()}.jsonl"
        body = first_line(self._project) + b"".join(lines.values())
        headers = Headers({}, "application/jsonl")
        await self._storage.put(f"{self._prefix}{MANIFEST}/{name}", body, headers)


def _path(key: str) -> str:
    """Return the key itself, unless it would be among the parts of the manifest."""
    return f"~{key}" if _OWN.match(key) else key


def _wire(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return metadata as S3 stores it; none if other programs wrote what Keyturn could not have.

    The manifest has all of it nevertheless.
    """
    try:
        return encode_caller_metadata(metadata)
    except MalformedRequestError:
        return {}
