"""The bucket of a source: what is read and deleted there (SPEC 17.1 to 17.3).

A source is not ours: a response of its server never counts as one of our own storage, so every
error becomes one of a source's codes. Either exactly what was read is deleted, or nothing.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

import structlog

from keyturn.errors import (
    ArchivedObjectError,
    CodedError,
    MalformedRequestError,
    NotPermittedError,
    SettingsError,
    SourceChangedError,
    SourceMissingError,
    SourceUnavailableError,
    StorageUnavailableError,
    TransientError,
    UnknownSourceError,
)
from keyturn.identifiers import OWN_PREFIX
from keyturn.messages import SourceBody, SourceObject, UploadRequested
from keyturn.settings import S3Settings
from keyturn_workers.errors import (
    ArchivedError,
    MissingError,
    PreconditionError,
    RefusedError,
    RequestFailedError,
    StorageAnswerError,
)
from keyturn_workers.sources.config import Source, Target
from keyturn_workers.storage import Headers, ObjectHead, Storage
from keyturn_workers.storage.port import EntriesPage, ObjectStream, ObjectVersion
from keyturn_workers.storage.probe.request_checks import conditional_delete
from keyturn_workers.storage.probe.runner import PREFIX as PROBE_PREFIX
from keyturn_workers.storage.s3 import open_storage

Deletion = Literal["never", "by version", "conditionally", "unconditionally", "not possible"]
PIECE_BYTES: Final = 1024 * 1024
_RESPONSE_S: Final = 15.0
# The pause after a source has failed: doubled each time, from the first value to the last.
_PAUSES_S: Final = (1.0, 30.0)
# A delete waits for its response however long that takes, so only this many run at once. Others
# wait for their turn, unless none has ended for this long.
_DELETES_AT_ONCE: Final = 8
_DELETE_TURN_S: Final = 5.0
_NULL_VERSION: Final = "null"
_PROOF_BYTES: Final = 32

_log = structlog.get_logger()


class SourceBucket:
    """One source.

    Args:
        name: Its name.
        source: Its bucket and its mapping.
        storage: That bucket.
        own: Keyturn's own bucket, which must not be the same.
    """

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
        # While it does not respond: no request until then, and the length of the latest pause.
        self._away_until_s = 0.0
        self._pause_s = 0.0
        self._is_trying = False

    async def check(self) -> None:
        """Make sure, once, that this is not Keyturn's own bucket by another name.

        A source whose credentials may not read the proof counts as another bucket: nothing under
        `.keyturn/` can be read through it.

        Raises:
            SettingsError: it is Keyturn's own bucket.
            SourceUnavailableError: that cannot be found out now.
            StorageUnavailableError, StorageAnswerError: Keyturn's own bucket fails.
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
        """The head of the object that is at this S3 key now.

        Raises:
            SourceMissingError, SourceUnavailableError
        """
        await self._require_other_bucket()
        async with self._asking():
            return await self._storage.head(s3_key)

    async def may_keep_versions(self) -> bool:
        """Whether objects may have versions, which a listing does not show.

        Not every storage, nor every policy, lets this be found out. A failure says nothing about
        other requests, so that it causes no pause.
        """
        try:
            async with asyncio.timeout(_RESPONSE_S):
                return await self._storage.versioning() != ""
        except (StorageAnswerError, StorageUnavailableError, TimeoutError):
            return True

    async def list_page(self, *, prefix: str = "", after: str = "") -> EntriesPage:
        """Objects of the source, in the order of its storage.

        Args:
            prefix: What follows the source's own prefix.
            after: The S3 key after which the page begins.

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
            SourceMissingError, SourceChangedError: the source has no such object any more.
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
            # Only the read is within: what the reader of these pieces raises is not a source's.
            with self._translated():
                piece = await anext(pieces, None)
            if piece is None:
                return
            yield piece

    async def delete_read(self, named: SourceObject) -> None:
        """Delete what was read and stored, if the source is to be emptied, and nothing else.

        A failure is only logged: the object stays, and whatever names it again deletes it.
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
            # A delete that was given up could still arrive.
            async with self._asking(patient=True):
                if _fixed_version(named) is not None:
                    await self._delete_version(named)
                else:
                    await self._delete_unversioned(named)
        except SourceMissingError:
            pass  # another delivery, or its owner, deleted it
        except SourceChangedError:
            _log.info("source's object was overwritten: the new one stays", source=self.name)
        except (TransientError, ArchivedObjectError, StorageAnswerError) as exc:
            _log.warning("source's object not deleted", source=self.name, problem=str(exc))
        finally:
            self._delete_ended_s = asyncio.get_running_loop().time()
            self._deletes.release()

    async def _may_delete(self) -> bool:
        """Wait for a turn; False if no delete has ended for a while."""
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

        Not where versioning is suspended: a delete marker would replace what has no version there.
        """
        version_id = named.version or ""
        try:
            is_enabled = await self._storage.versioning() == "Enabled"
            older = await self._older_version(named.key, version_id) if is_enabled else None
        except (StorageUnavailableError, RefusedError):
            older = None  # not every storage, nor every policy, lets versions be listed
        await self._storage.delete_version(named.key, version_id)
        if older is None or (await self._storage.head(named.key)).version_id != older.version_id:
            return
        marker = await self._storage.delete_if_match(named.key, older.etag)
        # Where the condition is ignored, a new object may have come in between: show it again.
        if marker is not None and await self._older_version(named.key, marker) != older:
            await self._storage.delete_version(named.key, marker)

    async def _older_version(self, s3_key: str, version_id: str) -> ObjectVersion | None:
        """The object that was current before this version; None if there is none.

        Also None if the version itself is not the current one.
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
            # As late as possible. An object written between this and the delete is lost.
            if (await self._storage.head(named.key)).etag != named.etag:
                raise PreconditionError("it was overwritten")
        elif not await self._deletes_conditionally():
            return
        await self._storage.delete_if_match(named.key, named.etag)

    async def find_deletion(self) -> Deletion:
        """Find out how objects of this source are deleted after they were stored.

        Raises:
            SourceUnavailableError: that cannot be found out now.
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
        """Whether the source's storage honors the condition of a delete, found out once."""
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
        """As `check`, for a source that could not be reached when the process started.

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
        waits for the end of the pause, and for the response however long it takes.

        Raises:
            SourceUnavailableError: it does not respond, or did not a moment ago.
        """
        left_s = self._away_until_s - asyncio.get_running_loop().time()
        if patient:
            await asyncio.sleep(max(left_s, 0))
        elif self._pause_s and (left_s > 0 or self._is_trying):
            raise SourceUnavailableError(
                f"source {self.name} did not respond; next attempt in {max(left_s, 1):.0f} s"
            )
        self._is_trying = bool(self._pause_s)
        try:
            with self._translated():
                async with asyncio.timeout(None if patient else _RESPONSE_S):
                    yield
            self._pause_s = 0.0
        finally:
            self._is_trying = False

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except StorageAnswerError as exc:
            self._pause_s = 0.0
            raise self._refusal(exc) from exc
        except RequestFailedError as exc:
            # It may fail for this object alone, so it is no reason to leave the others alone.
            self._pause_s = 0.0
            raise SourceUnavailableError(f"source {self.name}: {exc.detail}") from exc
        except StorageUnavailableError as exc:
            raise self._failure(exc.detail) from exc
        except TimeoutError as exc:
            raise self._failure(f"no response within {_RESPONSE_S:.0f} s") from exc

    def _refusal(self, error: StorageAnswerError) -> CodedError:
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
    """The version, if its id can never name another body: `null` is overwritten."""
    return None if named.version == _NULL_VERSION else named.version


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of a process, and which of them a request may name."""

    deployment: str = ""
    buckets: Mapping[str, SourceBucket] = field(default_factory=dict)

    def bucket_of(self, request: UploadRequested) -> SourceBucket:
        """The source that the request names an object of.

        Raises:
            UnknownSourceError: there is no such source here.
            NotPermittedError: the source maps the object to another place, or to none.
            MalformedRequestError: the upload's id is not that of the object.
        """
        if not isinstance(request.body, SourceBody):
            raise TypeError("not the body of a source")
        named = request.body.source
        bucket = self.buckets.get(named.name)
        if bucket is None:
            raise UnknownSourceError(f"this worker has no source {named.name}")
        if bucket.source.target(named.key) != Target(request.project, request.key):
            raise NotPermittedError(f"source {named.name} maps this object to another place")
        if request.upload_id != named.upload_id(self.deployment):
            raise MalformedRequestError("upload_id: not the id of this object of the source")
        return bucket


@asynccontextmanager
async def open_source(
    name: str, source: Source, settings: S3Settings, own: Storage
) -> AsyncIterator[SourceBucket]:
    """Open one source, without asking it anything. Arguments are those of `open_sources`.

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
    sources: Mapping[str, Source], deployment: str, settings: S3Settings, own: Storage
) -> AsyncIterator[Sources]:
    """Open all sources for the life of the process.

    A source that cannot be reached now is checked when it is first used.

    Args:
        sources: By name.
        deployment: The name of the deployment.
        settings: Those of Keyturn's own bucket.
        own: That bucket.

    Raises:
        SettingsError: a source is Keyturn's own bucket, or its credentials cannot be used.
    """
    async with AsyncExitStack() as stack:
        buckets = {
            name: await stack.enter_async_context(open_source(name, source, settings, own))
            for name, source in sources.items()
        }
        await asyncio.gather(*map(_check_now, buckets.values()))
        yield Sources(deployment, buckets)


async def _check_now(bucket: SourceBucket) -> None:
    try:
        await bucket.check()
    except SourceUnavailableError as exc:
        _log.warning("source not reached", source=bucket.name, problem=exc.detail)
