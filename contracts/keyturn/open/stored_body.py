"""The stored bytes of one object, read by a presigned URL (SPEC 9.3).

One read may take several requests: a broken connection is resumed where it broke. The object's
header binds them together: chunks of another body at the same key do not decrypt. No redirect is
followed. It must never put the URL, or a part of a response's body, into an error.
"""

import asyncio
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pydantic import SecretStr

from keyturn.errors import (
    ArchivedObjectError,
    CorruptObjectError,
    IncompleteBodyError,
    LinkExpiredError,
    NotFoundError,
    RangeNotSatisfiableError,
    StorageUnavailableError,
)
from keyturn.gateway.responses import ByteRange, content_lengths, storage_response_error
from keyturn.gateway.transport import Transport, next_piece
from keyturn.metadata import ALGO, DELETED

if TYPE_CHECKING:
    from collections.abc import Mapping

    import aiohttp

_OK: Final = 200
_PARTIAL: Final = 206
_FORBIDDEN: Final = 403
_RESUME_PAUSES_S: Final = (0.05, 0.3, 1.0)
_STORAGE_CODE: Final = re.compile(rb"<Code>([A-Za-z]{1,64})</Code>")


@dataclass(frozen=True, slots=True)
class StoredBody:
    """The location of one object's stored bytes.

    Args:
        transport: The connections to the storage.
        url: The presigned URL.
    """

    transport: Transport
    url: SecretStr = field(repr=False)

    async def request(self, span: ByteRange) -> "tuple[aiohttp.ClientResponse, int]":
        """Return the response with a range of the body, and the length of the whole body.

        Its owner closes the response.

        Raises:
            LinkExpiredError: the storage refuses the URL.
            NotFoundError: the object is gone.
            ArchivedObjectError: it must be restored first.
            RangeNotSatisfiableError: the body ends before the range.
            StorageUnavailableError: the storage fails.
            UnexpectedResponseError: not the response to this request.
        """
        headers = {} if span.is_whole else {"Range": span.header}
        response = await self.transport.read_presigned("GET", self.url, headers)
        try:
            return response, await self._checked(response, span)
        except BaseException:
            response.close()
            raise

    async def _checked(self, response: "aiohttp.ClientResponse", span: ByteRange) -> int:
        if response.status not in (_OK, _PARTIAL):
            raise await self._error(response)
        if response.headers.get(f"x-amz-meta-{ALGO}") == DELETED:
            raise NotFoundError("the object was deleted")
        return content_lengths(response.status, response.headers, span, by_storage=True)[0]

    async def _error(self, response: "aiohttp.ClientResponse") -> Exception:
        if response.status != _FORBIDDEN:
            return storage_response_error(response.status)
        body = await self.transport.body_of(response)
        code = _STORAGE_CODE.search(body or b"")
        if code is not None and code[1] == b"InvalidObjectState":
            return ArchivedObjectError("restore the object from its archive first")
        return LinkExpiredError("the storage refuses the link: it has expired, or was changed")


class StoredStream:
    """Stored bytes from `offset` to `end`, in order, over several requests if needed.

    Args:
        body: Their location.
        offset: The first byte.
        end: The byte after the last one; None for the end of the body.
    """

    def __init__(self, body: StoredBody, offset: int = 0, end: int | None = None) -> None:
        self._body = body
        self._offset = offset
        self._end = end
        self._failures = 0
        self._response: aiohttp.ClientResponse | None = None
        self._whole_bytes: int | None = None
        self.headers: Mapping[str, str] = {}
        """The headers of the first response."""

    @property
    def whole_bytes(self) -> int:
        """The length of the whole stored body, by the storage's statement."""
        if self._whole_bytes is None:
            raise RuntimeError("the length is known only after start()")
        return self._whole_bytes

    async def start(self) -> None:
        """Make the first request, so that the length is known; none for an empty stream.

        Raises:
            Exception: as `StoredBody.request`; a failing storage is asked four times.
        """
        while self._response is None and not self._is_over:
            try:
                self._response = await self._connect()
            except StorageUnavailableError as exc:
                await self._pause(exc)

    async def next_piece(self) -> bytes:
        """Return the next bytes, as they came; none at the end.

        Raises:
            IncompleteBodyError: connections keep breaking.
            Exception: as `StoredBody.request`.
        """
        while not self._is_over:
            try:
                piece = await self._received()
            except (StorageUnavailableError, IncompleteBodyError) as exc:
                self.close()
                await self._pause(exc)
            else:
                # Only failures without progress count: a long read meets more broken connections
                # than a short one.
                self._offset += len(piece)
                self._failures = 0
                return piece
        self.close()
        return b""

    async def read(self) -> bytes:
        """Return all bytes up to the end, in memory. Errors as `next_piece`."""
        pieces = []
        while piece := await self.next_piece():
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """End the connection; one whose response was read to its end is already in the pool."""
        if self._response is not None:
            self._response.close()
            self._response = None

    @property
    def _is_over(self) -> bool:
        return self._end is not None and self._offset >= self._end

    async def _received(self) -> bytes:
        if self._response is None:
            self._response = await self._connect()
        piece = await next_piece(self._response)
        if not piece:
            raise IncompleteBodyError("the body ended before its length")
        return piece

    async def _connect(self) -> "aiohttp.ClientResponse":
        length = None if self._end is None else self._end - self._offset
        try:
            response, whole_bytes = await self._body.request(ByteRange(self._offset, length))
        except RangeNotSatisfiableError:
            if self._whole_bytes is None:
                raise
            # Objects are written once: only a delete makes one shorter.
            raise NotFoundError("the object was deleted while it was read") from None
        if self._whole_bytes is None:
            self._whole_bytes, self.headers = whole_bytes, response.headers
            self._end = whole_bytes if self._end is None else min(self._end, whole_bytes)
        elif whole_bytes != self._whole_bytes:
            response.close()
            raise CorruptObjectError("the object was replaced by another body")
        return response

    async def _pause(self, lost: Exception) -> None:
        if self._failures == len(_RESUME_PAUSES_S):
            raise lost
        await asyncio.sleep(_RESUME_PAUSES_S[self._failures])
        self._failures += 1
