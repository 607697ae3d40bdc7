"""The bucket of a source: read and delete its objects (SPEC 17.1 to 17.3).

A source is not ours: a response of its server never counts as one of our own storage, so every
error gets a source's code. Either exactly the object that was read is deleted, or nothing.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Final, Literal

import structlog

from keyturn.errors import (
    ArchivedObjectError,
    CodedError,
    SettingsError,
    SourceChangedError,
    SourceMissingError,
    SourceUnavailableError,
    StorageUnavailableError,
    TransientError,
)
from keyturn.identifiers import OWN_PREFIX
from keyturn.messages.requests import SourceObject
from keyturn.settings import S3Settings
from keyturn_workers.core.errors import (
    ArchivedError,
    MissingError,
    PreconditionError,
    RefusedError,
    RequestFailedError,
    StorageResponseError,
)
from keyturn_workers.core.source_mapping import Source
from keyturn_workers.core.storage_port import ObjectStream, Storage
from keyturn_workers.core.storage_values import EntriesPage, Headers, ObjectHead, ObjectVersion
from keyturn_workers.storage.probe.request_checks import conditional_delete
from keyturn_workers.storage.probe.runner import PREFIX as PROBE_PREFIX
from keyturn_workers.storage.s3 import open_storage

Deletion = Literal["never", "by version", "conditionally", "unconditionally", "not possible"]
PIECE_BYTES: Final = 1024 * 1024
_RESPONSE_S: Final = 15.0
# The pause after a source has failed: doubled each time, from the first value to the last.
_PAUSES_S: Final = (1.0, 30.0)
# A delete waits for its response without a time limit, so only this many run at once. Others wait
# for a slot, unless no delete has ended for this long.
_DELETES_AT_ONCE: Final = 8
_DELETE_TURN_S: Final = 5.0
_NULL_VERSION: Final = "null"
_PROOF_BYTES: Final = 32

_log = structlog.get_logger()


class SourceBucket:
    """One source. `storage` is its bucket; `own` is Keyturn's, which must be another one."""

    def __init__(self, name: str, source: Source, storage: Storage, own: Storage) -> None:
        self.name = name
        self.source = source
        self._storage = storage
        self._own = own
        self._is_checked = False
        self._honors_conditions: bool | None = None
        self._checking = asyncio.Lock()
        self._deletes = asyncio.Semaphore(_DELETES_AT_ONCE)
        self._delete_ended_s = 0.0
        # While the source does not respond: no request before this time; the latest pause.
        self._away_until_s = 0.0
        self._pause_s = 0.0
        self._is_trying = False

    async def check(self) -> None:
        """Make sure, once, that this is not Keyturn's own bucket by another name.

        A source whose credentials may not read the proof counts as another bucket: nothing under
        `.keyturn/` can be read through it.

        Raises:
            SettingsError: it is Keyturn's own bucket.
            SourceUnavailableError: the source cannot be checked now.
            StorageUnavailableError, StorageResponseError: Keyturn's own bucket fails.
        """
        async with self._checking:
            if self._is_checked:
                return
            s3_key = f"{PROBE_PREFIX}{secrets.token_hex(8)}/source"
            proof = secrets.token_bytes(_PROOF_BYTES)
            await self._own.put(s3_key, proof, Headers({}))
            try:
                async with self._asking():
                    _, found = await self._storage.read_start(s3_key, _PROOF_BYTES)
            except (SourceMissingError, _RefusedSourceError):
                found = b""
            finally:
                await self._own.delete(s3_key)
            if found == proof:
                raise SettingsError(
                    f"KEYTURN_SOURCES: source {self.name} is the bucket of KEYTURN_S3_BUCKET by "
                    "another name"
                )
            self._is_checked = True

    async def head(self, s3_key: str) -> ObjectHead:
        """Read the head of the current object at this S3 key.

        Raises:
            SourceMissingError, SourceUnavailableError
        """
        await self._require_other_bucket()
        async with self._asking():
            return await self._storage.head(s3_key)

    async def may_keep_versions(self) -> bool:
        """Return whether objects may have versions, which a listing does not show.

        Not every storage or policy lets a client find this out. A failure says nothing about
        other requests, so it causes no pause.
        """
        try:
            async with asyncio.timeout(_RESPONSE_S):
                return await self._storage.versioning() != ""
        except (StorageResponseError, StorageUnavailableError, TimeoutError):
            return True

    async def list_page(self, *, prefix: str = "", after: str = "") -> EntriesPage:
        """List objects of the source, in the order of its storage.

        `prefix` is relative to the source's own prefix; `after` is a whole S3 key.

        Raises:
            SourceUnavailableError
        """
        await self._require_other_bucket()
        async with self._asking():
            return await self._storage.list_entries(f"{self.source.prefix}{prefix}", after=after)

    @asynccontextmanager
    async def stream(self, named: SourceObject) -> AsyncIterator[ObjectStream]:
        """Open exactly the object that is named.

        Raises:
            SourceMissingError, SourceChangedError: the source no longer has this object.
            ArchivedObjectError: it must be restored first.
            SourceUnavailableError: also from the stream's pieces, which `pieces_of` translates.
        """
        await self._require_other_bucket()
        async with AsyncExitStack() as stack:
            async with self._asking():
                stream = await stack.enter_async_context(
                    self._storage.stream(
                        named.key, if_match=named.etag, version_id=_fixed_version(named)
                    )
                )
            # A server may ignore a condition.
            if (stream.head.etag, stream.head.size_bytes) != (named.etag, named.size):
                raise SourceChangedError("the source's object has a different ETag or size")
            yield stream

    async def pieces_of(self, stream: ObjectStream) -> AsyncIterator[bytes]:
        """The stream's bytes, in pieces of 1 MiB at most.

        Raises:
            SourceUnavailableError: the connection broke before the object's end.
        """
        pieces = stream.chunks(PIECE_BYTES)
        while True:
            # Only the read is inside: errors of the pieces' reader are not the source's.
            with self._translated():
                piece = await anext(pieces, None)
            if piece is None:
                return
            yield piece

    async def delete_read(self, named: SourceObject) -> None:
        """Delete exactly the object that was read and stored, if the source's settings say so.

        A failure is only logged: the object stays until it is named again.
        """
        if self.source.delete is False:
            return
        if not await self._may_delete():
            _log.warning(
                "source's object not deleted", source=self.name, problem="other deletes hang"
            )
            return
        try:
            await self._require_other_bucket()
            # Patient, as an abandoned delete could still arrive.
            async with self._asking(patient=True):
                if _fixed_version(named) is not None:
                    await self._delete_version(named)
                else:
                    await self._delete_unversioned(named)
        except SourceMissingError:
            pass  # another delivery, or the object's owner, deleted it
        except SourceChangedError:
            _log.info("source's object was overwritten: the new one stays", source=self.name)
        except (TransientError, ArchivedObjectError, StorageResponseError) as exc:
            _log.warning("source's object not deleted", source=self.name, problem=str(exc))
        finally:
            self._delete_ended_s = asyncio.get_running_loop().time()
            self._deletes.release()

    async def _may_delete(self) -> bool:
        """Wait for a slot; False if no delete has ended for a while."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(_DELETE_TURN_S):
                    return await self._deletes.acquire()
            except TimeoutError:
                if loop.time() - self._delete_ended_s > _DELETE_TURN_S:
                    return False

    async def _delete_version(self, named: SourceObject) -> None:
        """Delete the version; hide an older one that would become the current one.

        If versioning is suspended, hide none: a delete marker would replace the unversioned object.
        """
        version_id = named.version or ""
        try:
            is_enabled = await self._storage.versioning() == "Enabled"
            older = await self._older_version(named.key, version_id) if is_enabled else None
        except (StorageUnavailableError, RefusedError):
            older = None  # not every storage or policy allows listing versions
        await self._storage.delete_version(named.key, version_id)
        if older is None or (await self._storage.head(named.key)).version_id != older.version_id:
            return
        marker = await self._storage.delete_if_match(named.key, older.etag)
        # If the condition is ignored, a new object may have come in between: show it again.
        if marker is not None and await self._older_version(named.key, marker) != older:
            await self._storage.delete_version(named.key, marker)

    async def _older_version(self, s3_key: str, version_id: str) -> ObjectVersion | None:
        """Return the object that was current before this version.

        None if there is no such object, or if this version is not the current one.
        """
        is_next = False
        async for row in self._storage.list_versions(s3_key):
            if row.key != s3_key:
                return None
            if is_next:
                return None if row.is_delete_marker else row
            if row.version_id != version_id:
                return None
            is_next = True
        return None

    async def _delete_unversioned(self, named: SourceObject) -> None:
        if self.source.delete == "unconditional":
            # Checked as late as possible: an object written between this and the delete is lost.
            if (await self._storage.head(named.key)).etag != named.etag:
                raise PreconditionError("it was overwritten")
        elif not await self._deletes_conditionally():
            return
        await self._storage.delete_if_match(named.key, named.etag)

    async def find_deletion(self) -> Deletion:
        """Find out how objects of this source are deleted after they were stored.

        Raises:
            SourceUnavailableError: this cannot be found out now.
        """
        if self.source.delete is False:
            return "never"
        async with self._asking():
            if await self._storage.versioning() == "Enabled":
                return "by version"
            if self.source.delete == "unconditional":
                return "unconditionally"
            return "conditionally" if await self._honors_condition() else "not possible"

    async def _deletes_conditionally(self) -> bool:
        """Find out once if the source's storage honors the condition of a delete."""
        async with self._checking:
            if self._honors_conditions is None:
                self._honors_conditions = await self._honors_condition()
                if not self._honors_conditions:
                    _log.warning(
                        "objects of this source are not deleted: its bucket keeps no versions, and "
                        "conditional deletes are not honored or could not be tried. Turn on "
                        'versioning, or set "delete": "unconditional"',
                        source=self.name,
                    )
        return self._honors_conditions

    async def _honors_condition(self) -> bool:
        s3_key = f"{self.source.prefix}{OWN_PREFIX}{secrets.token_hex(8)}"
        try:
            outcome = await conditional_delete(self._storage, s3_key)
            await self._storage.delete(s3_key)
        except RefusedError:
            return False  # these credentials may not put an object there
        return outcome.ok

    async def _require_other_bucket(self) -> None:
        """Like `check`, for a source that could not be reached when the process started.

        Raises:
            SourceUnavailableError
        """
        if self._is_checked:
            return
        try:
            await self.check()
        except SettingsError as exc:
            _log.error("source refused", source=self.name, problem=str(exc))
            raise SourceUnavailableError(f"source {self.name} is Keyturn's own bucket") from exc

    @asynccontextmanager
    async def _asking(self, *, patient: bool = False) -> AsyncIterator[None]:
        """Limit how long a source that does not respond delays other uploads.

        After a failure there is a pause, and then a single caller tries again. A patient caller
        waits for the end of the pause, and without a time limit for the response. It is never that
        single caller: otherwise one delete without a response would block all reads.

        Raises:
            SourceUnavailableError: the source does not respond, or did not a moment ago.
        """
        left_s = self._away_until_s - asyncio.get_running_loop().time()
        is_trial = bool(self._pause_s) and not patient
        if patient:
            await asyncio.sleep(max(left_s, 0))
        elif self._pause_s and (left_s > 0 or self._is_trying):
            raise SourceUnavailableError(
                f"source {self.name} did not respond; next attempt in {max(left_s, 1):.0f} s"
            )
        self._is_trying |= is_trial
        try:
            with self._translated():
                async with asyncio.timeout(None if patient else _RESPONSE_S):
                    yield
            self._pause_s = 0.0
        finally:
            # A call from before the pause may end during a trial: only the trial resets the flag.
            if is_trial:
                self._is_trying = False

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except StorageResponseError as exc:
            self._pause_s = 0.0
            raise self._refusal(exc) from exc
        except RequestFailedError as exc:
            # The request may fail for this object alone, so others need no pause.
            self._pause_s = 0.0
            raise SourceUnavailableError(f"source {self.name}: {exc.detail}") from exc
        except StorageUnavailableError as exc:
            raise self._failure(exc.detail) from exc
        except TimeoutError as exc:
            raise self._failure(f"no response within {_RESPONSE_S:.0f} s") from exc

    def _refusal(self, error: StorageResponseError) -> CodedError:
        match error:
            case MissingError():
                return SourceMissingError(f"source {self.name} has no such object")
            case PreconditionError():
                return SourceChangedError(f"the object of source {self.name} has changed")
            case ArchivedError():
                return ArchivedObjectError(
                    "the source's object must be restored from its storage class first"
                )
            case _:
                return _RefusedSourceError(f"source {self.name}: {error}")

    def _failure(self, problem: str) -> SourceUnavailableError:
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._away_until_s:  # calls that fail together lengthen the pause once
            self._pause_s = min(2 * self._pause_s or _PAUSES_S[0], _PAUSES_S[1])
            self._away_until_s = now_s + self._pause_s
        return SourceUnavailableError(f"source {self.name}: {problem}")


class _RefusedSourceError(SourceUnavailableError):
    """The source refuses these credentials."""


def _fixed_version(named: SourceObject) -> str | None:
    """The version, if its id can never name another body: the version `null` is overwritten."""
    return None if named.version == _NULL_VERSION else named.version


@asynccontextmanager
async def open_source(
    name: str, source: Source, settings: S3Settings, own: Storage
) -> AsyncIterator[SourceBucket]:
    """Open one source, without sending it a request. See `open_sources` for the arguments.

    Raises:
        SettingsError: its credentials cannot be used.
    """
    try:
        its_settings = source.storage_settings(settings)
    except ValueError as exc:
        raise SettingsError(f"KEYTURN_SOURCES: source {name}: {exc}") from None
    async with open_storage(its_settings) as storage:
        yield SourceBucket(name, source, storage, own)


@asynccontextmanager
async def open_sources(
    sources: Mapping[str, Source], settings: S3Settings, own: Storage
) -> AsyncIterator[Mapping[str, SourceBucket]]:
    """Open all sources for the life of the process, by name.

    A source that cannot be checked now, because it or Keyturn's own bucket does not respond, is
    checked when it is first used. `settings` and `own` are those of Keyturn's own bucket.

    Raises:
        SettingsError: a source is Keyturn's own bucket, or its credentials cannot be used.
    """
    async with AsyncExitStack() as stack:
        buckets = {
            name: await stack.enter_async_context(open_source(name, source, settings, own))
            for name, source in sources.items()
        }
        await asyncio.gather(*map(_check_now, buckets.values()))
        yield buckets


async def _check_now(bucket: SourceBucket) -> None:
    try:
        await bucket.check()
    except (SourceUnavailableError, StorageUnavailableError, StorageResponseError) as exc:
        problem = exc.detail if isinstance(exc, CodedError) else str(exc)
        _log.warning("source not reached", source=bucket.name, problem=problem)
