"""An in-memory storage for unit tests of everything above the port (SPEC 8.4, 10).

It has conditions, multipart uploads, versions, locks, leases by its own clock, and the capabilities
it is given. A test can make any operation fail before or after its effect, or run something just
before it. The bucket's content is in `memory_bucket`. It must never be
offered as a storage to run on.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count, islice
from typing import Final

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.errors import MissingError, PreconditionError, RefusedError
from keyturn_workers.core.storage_port import ObjectStream
from keyturn_workers.core.storage_values import (
    BASELINE,
    PAGE_KEYS,
    RECORD_MAX_BYTES,
    Capabilities,
    Condition,
    EntriesPage,
    Headers,
    IfMatch,
    Lease,
    ListingPage,
    MultipartUpload,
    ObjectHead,
    ObjectSummary,
    ObjectVersion,
    Part,
    Versioning,
    WriteResult,
)
from keyturn_workers.storage.clock import boottime_s
from keyturn_workers.storage.s3_wire import LEGAL_HOLD, lock_state
from keyturn_workers.storage.streaming_body import KnownLengthBody
from tools.harness.memory_bucket import Bucket, Stored, etag_of, new_version


@dataclass(slots=True)
class _Upload:
    key: str
    headers: Headers
    initiated: datetime
    parts: dict[int, bytes] = field(default_factory=dict)


# Not a multiple of any meaningful length, as on a network.
_ARRIVING_BYTES: Final = 20_011


@dataclass(frozen=True, slots=True)
class _Failure:
    exception: Exception
    after_effect: bool


class MemoryStream:
    """An open read of an object."""

    def __init__(self, head: ObjectHead, body: bytes) -> None:
        self.head = head
        self._body = body

    async def chunks(self, size_bytes: int | None) -> AsyncIterator[bytes]:
        """Yield pieces of exactly `size_bytes`, the last one shorter; with None of any size."""
        step = size_bytes or _ARRIVING_BYTES
        for start in range(0, len(self._body), step):
            await asyncio.sleep(0)
            yield self._body[start : start + step]


class MemoryStorage:
    """One bucket. See `keyturn_workers.core.storage_port.Storage` for what each method promises.

    Args:
        capabilities: What this server honors beyond the requirements of SPEC 10.
        versioned: Whether writes and deletes keep the earlier versions. Conditions are honored
            all the same.
        atomic_copies: If False, a self-copy reads its source, lets other tasks run, and then
            writes what it read, whatever happened in between. Ceph's gateway does this: it
            restores a deleted or replaced body and reports success.
    """

    def __init__(
        self,
        *,
        capabilities: Capabilities = BASELINE,
        versioned: bool = False,
        atomic_copies: bool = True,
    ) -> None:
        self.capabilities = capabilities
        self.atomic_copies = atomic_copies
        self.calls: Counter[str] = Counter()
        self.page_keys = PAGE_KEYS
        self._bucket = Bucket(versioned=versioned, order=capabilities.order)
        self._uploads: dict[str, _Upload] = {}
        self._ids = count(1)
        self._skew = timedelta()
        self._failures: dict[str, list[_Failure]] = {}
        self._hooks: dict[str, list[Callable[[], Awaitable[object]]]] = {}

    # Controls for tests.

    def advance(self, seconds: float) -> None:
        """Move the storage's clock forward."""
        self._skew += timedelta(seconds=seconds)

    def elapsed_s(self) -> float:
        """The local clock of a process that `advance` stalls: for a `StorageClock`."""
        return boottime_s() + self._skew.total_seconds()

    @property
    def now(self) -> datetime:
        """The storage's clock, in whole seconds as in a `Date` header."""
        return (datetime.now(UTC) + self._skew).replace(microsecond=0)

    def fail_next(
        self, operation: str, exception: Exception, *, after_effect: bool = False, times: int = 1
    ) -> None:
        """Make the next calls of a method raise, before or after their effect."""
        self._failures.setdefault(operation, []).extend([_Failure(exception, after_effect)] * times)

    def before_next(self, operation: str, hook: Callable[[], Awaitable[object]]) -> None:
        """Run a hook just before the next call of a method takes effect.

        `mid_copy` is the moment within a self-copy that is not atomic.
        """
        self._hooks.setdefault(operation, []).append(hook)

    def set_versioning(self, status: Versioning) -> None:
        """Enable or suspend versioning, as the bucket's owner can at any time."""
        self._bucket.versioning = status

    def plant(
        self,
        key: str,
        body: bytes,
        headers: Headers,
        *,
        tags: Mapping[str, str] | None = None,
        archived: bool = False,
        locked: bool = False,
    ) -> None:
        """Store an object as another writer would, ignoring hooks and locks.

        `locked` sets a legal hold, unless the headers have a lock.
        """
        if locked and not lock_state(headers, self.now)[1]:
            held = {**headers.restated, LEGAL_HOLD: "ON"}
            headers = Headers(headers.metadata, headers.content_type, held)
        stored = Stored(body, headers, etag_of(body), self.now, dict(tags or {}), archived=archived)
        self._bucket.plant(key, stored)

    def stored_keys(self) -> Sequence[str]:
        """The keys of all objects, in the order of listings."""
        return self._bucket.keys()

    # The port.

    async def read(
        self, key: str, *, max_bytes: int = RECORD_MAX_BYTES
    ) -> tuple[ObjectHead, bytes]:
        """Read a small object completely."""
        async with self._acting("read"):
            stored = self._bucket.get(key)
            return stored.head(self.now), stored.readable_body()[:max_bytes]

    async def read_start(
        self, key: str, length_bytes: int, *, version_id: str | None = None
    ) -> tuple[ObjectHead, bytes]:
        """Read the head and the first bytes."""
        async with self._acting("read_start"):
            stored = self._bucket.get(key, version_id)
            return stored.head(self.now), stored.readable_body()[:length_bytes]

    async def head(self, key: str) -> ObjectHead:
        """Read only the head."""
        async with self._acting("head"):
            return self._bucket.get(key).head(self.now)

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
        """Open the object from byte `start` on."""
        end = None if length_bytes is None else start + length_bytes
        async with self._acting("stream"):
            stored = self._bucket.get(key, version_id)
            if if_match is not None and stored.etag != if_match:
                raise PreconditionError("stream: PreconditionFailed")
            stream = MemoryStream(stored.head(self.now), stored.readable_body()[start:end])
        yield stream

    async def presign_get(self, key: str, lease: Lease) -> str:
        """Make a URL that leads nowhere, since there is no server."""
        return (
            f"memory:///{key}?until={(lease.read_at + timedelta(seconds=lease.expires_s)):%FT%TZ}"
        )

    async def put(
        self,
        key: str,
        body: bytes,
        headers: Headers,
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        """Store an object from bytes in memory."""
        async with self._acting("put", lease):
            return self._store(key, body, headers, etag_of(body), condition)

    async def put_stream(
        self,
        key: str,
        chunks: AsyncIterator[bytes],
        size_bytes: int,
        headers: Headers,
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        """Store an object of known length; as on a server, the lease must hold at its start."""
        async with self._acting("put_stream", lease):
            body = await KnownLengthBody(chunks, size_bytes).read_all()
            return self._store(key, body, headers, etag_of(body), condition)

    async def copy_onto_itself(
        self, key: str, headers: Headers, *, source_etag: str, lease: Lease
    ) -> None:
        """Replace an object's metadata and keep its body."""
        async with self._acting("copy_onto_itself", lease):
            await self._copy(key, headers, source_etag)

    async def create_multipart(self, key: str, headers: Headers) -> str:
        """Create a multipart upload and return its id."""
        async with self._acting("create_multipart"):
            upload_id = f"upload-{next(self._ids)}"
            self._uploads[upload_id] = _Upload(key, headers, self.now)
            return upload_id

    async def upload_part(self, key: str, upload_id: str, number: int, body: bytes) -> Part:
        """Store one part."""
        async with self._acting("upload_part"):
            self._upload(key, upload_id).parts[number] = body
            return Part(number, etag_of(body))

    async def copy_part(
        self, key: str, upload_id: str, number: int, *, first: int, last: int, source_etag: str
    ) -> Part:
        """Store bytes `first` to `last` (inclusive) of the object itself as a part."""
        async with self._acting("copy_part"):
            self._check(key, IfMatch(source_etag))
            body = self._bucket.get(key).readable_body()[first : last + 1]
            self._upload(key, upload_id).parts[number] = body
            return Part(number, etag_of(body))

    async def complete_multipart(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[Part],
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        """Make the parts an object."""
        async with self._acting("complete_multipart", lease):
            upload = self._upload(key, upload_id)
            pieces = [upload.parts.get(part.number, b"") for part in parts]
            etags = [etag_of(piece) for piece in pieces]
            if [part.etag for part in parts] != etags:
                raise StorageUnavailableError("complete multipart: InvalidPart")
            effective = condition if self.capabilities.conditional_completion else None
            etag = f"{etag_of(bytes.fromhex(''.join(etags)))}-{len(pieces)}"
            written = self._store(key, b"".join(pieces), upload.headers, etag, effective)
            del self._uploads[upload_id]
            return written

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        """Abort a multipart upload. A missing one is no error."""
        async with self._acting("abort_multipart"):
            upload = self._uploads.get(upload_id)
            if upload is not None and upload.key == key:
                del self._uploads[upload_id]

    async def list_multipart_uploads(self, prefix: str) -> AsyncIterator[MultipartUpload]:
        """List the open multipart uploads under a prefix."""
        async with self._acting("list_multipart_uploads"):
            rows = [
                MultipartUpload(upload.key, upload_id, upload.initiated)
                for upload_id, upload in self._uploads.items()
                if upload.key.startswith(prefix)
            ]
        for row in sorted(rows, key=lambda row: row.key.encode()):
            yield row

    async def delete(self, key: str) -> None:
        """Delete an object. A missing one is no error."""
        async with self._acting("delete"):
            self._bucket.delete(key, self.now)

    async def delete_if_match(self, key: str, etag: str) -> str | None:
        """Delete conditionally."""
        async with self._acting("delete_if_match"):
            self._check(key, IfMatch(etag))
            return self._bucket.delete(key, self.now)

    async def list(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectSummary]:
        """List the objects under a prefix, in this storage's order."""
        async with self._acting("list"):
            keys = [key for key in self.stored_keys() if self._follows(key, prefix, after)][:limit]
            rows = [(key, self._bucket.get(key)) for key in keys]
        for key, stored in rows:
            yield ObjectSummary(key, len(stored.body), stored.etag, stored.last_modified)

    async def list_page(self, prefix: str, *, after: str = "") -> ListingPage:
        """Read one page of a listing."""
        async with self._acting("list_page"):
            keys = [key for key in self.stored_keys() if self._follows(key, prefix, after)]
            etags = {key: self._bucket.get(key).etag for key in keys[: self.page_keys]}
            return ListingPage(etags, len(keys) <= self.page_keys, self.now)

    async def list_entries(
        self, prefix: str, *, delimiter: str = "", after: str = "", limit: int = PAGE_KEYS
    ) -> EntriesPage:
        """Read one page of entries."""
        async with self._acting("list_entries"):
            keys = (key for key in self.stored_keys() if key.startswith(prefix))
            entries = dict.fromkeys(_entry(key, prefix, delimiter) for key in keys)
            # A key below a common prefix continues after all of that group.
            behind = _entry(after, prefix, delimiter) if after.startswith(prefix) else after
            order = self._bucket.order
            following = [name for name in entries if order(name) > order(behind)]
            page = following[: min(limit, self.page_keys)]
            rows, folders = [], []
            for name in page:
                if delimiter and delimiter in name[len(prefix) :]:
                    folders.append(name)
                else:
                    rows.append((name, self._bucket.get(name)))
        objects = [ObjectSummary(k, len(o.body), o.etag, o.last_modified) for k, o in rows]
        return EntriesPage(objects, folders, page[-1] if len(page) < len(following) else None)

    async def list_versions(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectVersion]:
        """List the versions and delete markers under a prefix."""
        async with self._acting("list_versions"):
            matching = (
                row for row in self._bucket.versions() if self._follows(row.key, prefix, after)
            )
            rows = list(islice(matching, limit))
        for row in rows:
            yield row

    async def delete_version(self, key: str, version_id: str) -> None:
        """Delete one version or delete marker for good. A missing one is no error."""
        async with self._acting("delete_version"):
            self._bucket.delete_version(key, version_id, self.now)

    async def read_tags(self, key: str) -> Mapping[str, str]:
        """Read an object's tags."""
        async with self._acting("read_tags"):
            return dict(self._bucket.get(key).tags)

    async def write_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """Replace an object's tags."""
        async with self._acting("write_tags"):
            self._bucket.change_tags(key, tags)

    async def versioning(self) -> Versioning:
        """The bucket's versioning status."""
        async with self._acting("versioning"):
            return self._bucket.versioning

    # Operations that only the probe uses.

    async def copy_conditionally(
        self,
        key: str,
        headers: Headers,
        *,
        source_etag: str | None,
        destination: Condition | None,
        lease: Lease,
    ) -> None:
        """Copy an object onto itself with exactly these conditions."""
        async with self._acting("copy_conditionally", lease):
            if self.capabilities.conditional_copy_destination:
                self._check(key, destination)
            await self._copy(key, headers, source_etag)

    async def put_cut_off(
        self,
        key: str,
        body: bytes,
        headers: Headers,
        *,
        sent_bytes: int,
        condition: Condition | None,
        lease: Lease | None,
    ) -> None:
        """Store nothing, as a server does that counts the bytes of a body."""
        del key, body, headers, sent_bytes, condition
        async with self._acting("put_cut_off", lease):
            pass

    async def purge(self, prefix: str) -> None:
        """Delete everything under a prefix."""
        async with self._acting("purge"):
            self._bucket.purge(prefix)
            self._uploads = {
                i: upload
                for i, upload in self._uploads.items()
                if not upload.key.startswith(prefix)
            }

    # Internals.

    @asynccontextmanager
    async def _acting(self, operation: str, lease: Lease | None = None) -> AsyncIterator[None]:
        self.calls[operation] += 1
        await asyncio.sleep(0)  # other tasks run meanwhile, as over a network
        await self._hook(operation)
        failures = self._failures.get(operation)
        failure = failures.pop(0) if failures else None
        if failure is not None and not failure.after_effect:
            raise failure.exception
        if lease is not None and self.now > lease.read_at + timedelta(seconds=lease.expires_s):
            raise RefusedError(f"{operation}: AccessDenied")
        yield
        if failure is not None:
            raise failure.exception

    async def _hook(self, operation: str) -> None:
        if hooks := self._hooks.get(operation):
            await hooks.pop(0)()

    def _follows(self, key: str, prefix: str, after: str) -> bool:
        order = self._bucket.order
        return key.startswith(prefix) and (not after or order(key) > order(after))

    def _upload(self, key: str, upload_id: str) -> _Upload:
        upload = self._uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise MissingError("NoSuchUpload")
        return upload

    def _check(self, key: str, condition: Condition | None) -> None:
        self._bucket.check(key, condition)

    def _store(
        self, key: str, body: bytes, headers: Headers, etag: str, condition: Condition | None
    ) -> WriteResult:
        self._check(key, condition)
        self._bucket.store(key, new_version(body, headers, etag, self.now))
        return WriteResult(etag, self.now)

    async def _copy(self, key: str, headers: Headers, source_etag: str | None) -> None:
        source = self._bucket.get(key)
        if source_etag is not None and source.etag != source_etag:
            raise PreconditionError("PreconditionFailed")
        body = source.readable_body()
        if not self.atomic_copies:
            await asyncio.sleep(0)
            await self._hook("mid_copy")
        tags = source.tags if self.capabilities.copy_keeps_tags else {}
        self._bucket.store(key, new_version(body, headers, source.etag, self.now, tags))


def _entry(key: str, prefix: str, delimiter: str) -> str:
    """The key, or the common prefix that it belongs to."""
    end = key.find(delimiter, len(prefix)) if delimiter else -1
    return key if end < 0 else key[: end + len(delimiter)]
