"""The bucket of a source: whose it is, what is read, and what is deleted there (SPEC 17)."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

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
    UnknownSourceError,
)
from keyturn.messages import SourceObject, UploadRequested
from keyturn.settings import S3Settings
from keyturn_workers.core.errors import (
    ArchivedError,
    MissingError,
    PreconditionError,
    RefusedError,
    RequestFailedError,
    StorageResponseError,
)
from keyturn_workers.core.source_mapping import parse_sources
from keyturn_workers.core.storage_values import Headers, ObjectHead
from keyturn_workers.pipeline.sources.bucket import SourceBucket, open_sources
from keyturn_workers.pipeline.sources.port import Sources
from tests.unit.keyturn_workers.factories import AT
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEY = "in/a"
NONE = Headers({})


def _bucket(storage: Any, own: Any = None, **fields: Any) -> SourceBucket:
    named = {"bucket": "the-drop", "prefix": "in/", "project": "acme", "key": "{name}", **fields}
    source = parse_sources({"drop": named})["drop"]
    return SourceBucket("drop", source, storage, own or MemoryStorage())


async def _named(storage: MemoryStorage, body: bytes = b"one", key: str = KEY) -> SourceObject:
    """The object as it is now."""
    storage.plant(key, body, NONE)
    head = await storage.head(key)
    return SourceObject(
        name="drop", key=key, etag=head.etag, version=head.version_id, size=head.size_bytes
    )


async def _read(bucket: SourceBucket, named: SourceObject) -> bytes:
    async with bucket.stream(named) as stream:
        return b"".join([piece async for piece in bucket.pieces_of(stream)])


class IgnoresConditions(MemoryStorage):
    """As Ceph's gateway: it reads and deletes whatever the condition is."""

    async def delete_if_match(self, key: str, etag: str) -> str | None:
        del etag
        async with self._acting("delete_if_match"):
            return self._bucket.delete(key, self.now)

    @asynccontextmanager
    async def stream(self, key: str, **how: Any) -> AsyncIterator[Any]:
        async with super().stream(key, **{**how, "if_match": None}) as stream:
            yield stream


# Whose bucket it is.


async def test_keyturns_own_bucket_is_refused_by_whatever_name() -> None:
    own = MemoryStorage()
    with pytest.raises(SettingsError, match="source drop is the bucket of KEYTURN_S3_BUCKET by"):
        await _bucket(own, own).check()
    assert list(own.stored_keys()) == []


async def test_another_bucket_is_asked_once() -> None:
    own, storage = MemoryStorage(), MemoryStorage()
    bucket = _bucket(storage, own)
    await bucket.check()
    await bucket.check()
    assert own.calls["put"] == own.calls["delete"] == storage.calls["read_start"] == 1


async def test_a_source_that_may_not_see_the_proof_is_another_bucket() -> None:
    storage = MemoryStorage()
    storage.fail_next("read_start", RefusedError("read: AccessDenied"))
    await _bucket(storage).check()


async def test_a_source_that_is_away_is_asked_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("keyturn_workers.pipeline.sources.bucket._PAUSES_S", (0.0, 0.0))
    own = MemoryStorage()
    bucket = _bucket(own, own)  # its own bucket, which could not be reached at the start
    named = await _named(own)
    own.fail_next("read_start", StorageUnavailableError("read: SlowDown"))
    with pytest.raises(SourceUnavailableError, match="source drop: read: SlowDown"):
        await bucket.check()
    for use in (bucket.head(KEY), bucket.list_page(), _read(bucket, named)):
        with pytest.raises(SourceUnavailableError, match="source drop is Keyturn's own bucket"):
            await use
    assert own.calls["stream"] == own.calls["head"] - 1 == own.calls["list_entries"] == 0


@pytest.mark.parametrize(
    "error", [StorageUnavailableError("put: connection closed"), RefusedError("put: 403")]
)
async def test_a_process_starts_although_keyturns_own_bucket_fails_a_sources_check(
    error: Exception,
) -> None:
    """A storage that closes one connection must not end a worker that restarts."""
    settings = S3Settings(
        s3_bucket="own",
        s3_endpoint_url="http://127.0.0.1:9",
        s3_access_key_id="k",
        s3_secret_access_key=SecretStr("s"),
    )
    own = MemoryStorage()
    own.fail_next("put", error)
    sources = parse_sources({"drop": {"bucket": "the-drop", "project": "acme", "key": "{name}"}})
    async with open_sources(sources, settings, own) as opened:
        assert opened.keys() == {"drop"}
    assert list(own.stored_keys()) == []


# What is read.


@pytest.mark.parametrize("versioned", [False, True])
async def test_the_object_that_is_named_is_read(*, versioned: bool) -> None:
    storage = MemoryStorage(versioned=versioned)
    bucket = _bucket(storage)
    first = await _named(storage, b"one" * 1_000_000)
    assert await _read(bucket, first) == b"one" * 1_000_000
    assert (await bucket.head(KEY)).etag == first.etag
    await _named(storage, b"two")
    if versioned:  # the version that is named is still there
        assert await _read(bucket, first) == b"one" * 1_000_000
    else:
        with pytest.raises(SourceChangedError):
            await _read(bucket, first)


@pytest.mark.parametrize("change", [{"etag": "other"}, {"size": 4}])
async def test_another_object_is_not_read_where_conditions_are_ignored(
    change: dict[str, Any],
) -> None:
    storage = IgnoresConditions()
    named = await _named(storage)
    with pytest.raises(SourceChangedError):
        await _read(_bucket(storage), named.model_copy(update=change))


@pytest.mark.parametrize(
    ("met", "error"),
    [
        (MissingError("stream: NoSuchKey"), SourceMissingError),
        (PreconditionError("stream: PreconditionFailed"), SourceChangedError),
        (ArchivedError("stream: InvalidObjectState"), ArchivedObjectError),
        (RefusedError("stream: AccessDenied"), SourceUnavailableError),
        (StorageResponseError("stream: Odd"), SourceUnavailableError),
        (StorageUnavailableError("stream: SlowDown"), SourceUnavailableError),
    ],
)
async def test_what_a_source_answers_is_no_answer_of_our_storage(
    met: Exception, error: type[CodedError]
) -> None:
    storage = MemoryStorage()
    named = await _named(storage)
    storage.fail_next("stream", met)
    with pytest.raises(error) as refused:
        await _read(_bucket(storage), named)
    assert not isinstance(refused.value, StorageUnavailableError)


async def test_a_connection_that_breaks_is_the_sources() -> None:
    class Cut:
        async def chunks(self, _: int | None) -> AsyncIterator[bytes]:
            yield b"on"
            raise StorageUnavailableError("stream: the body is too short")

    stream: Any = Cut()
    with pytest.raises(SourceUnavailableError, match="too short"):
        [piece async for piece in _bucket(MemoryStorage()).pieces_of(stream)]


async def test_pages_are_of_the_prefix_alone() -> None:
    storage = MemoryStorage()
    for key in ("a", "in", "in/a", "in/b/c", "in0"):
        storage.plant(key, b"", NONE)
    bucket = _bucket(storage)
    assert [row.key for row in (await bucket.list_page()).objects] == ["in/a", "in/b/c"]
    assert [row.key for row in (await bucket.list_page(after="in/a")).objects] == ["in/b/c"]
    assert [row.key for row in (await bucket.list_page(prefix="b")).objects] == ["in/b/c"]


# A server that is away.


class Away(MemoryStorage):
    """Responds only if it is told to."""

    responds = False

    async def head(self, key: str) -> ObjectHead:
        self.calls["asked"] += 1
        if not self.responds:
            await asyncio.Event().wait()
        return await super().head(key)


async def test_a_server_that_does_not_respond_holds_up_its_callers_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those who come meanwhile fail at once, so that their workers serve others."""
    monkeypatch.setattr("keyturn_workers.pipeline.sources.bucket._RESPONSE_S", 0.05)
    storage = Away()
    bucket = _bucket(storage)
    await bucket.check()
    first = await asyncio.gather(*(bucket.head(KEY) for _ in range(3)), return_exceptions=True)
    assert [str(each) for each in first] == [
        "source_unavailable: source drop: no response within 0 s"
    ] * 3
    for _ in range(3):
        with pytest.raises(SourceUnavailableError, match="next attempt in 1 s"):
            await bucket.head(KEY)
    assert storage.calls["asked"] == 3


@pytest.mark.parametrize("there", [False, True])
async def test_after_the_pause_one_caller_tries_and_a_response_ends_it(
    monkeypatch: pytest.MonkeyPatch, *, there: bool
) -> None:
    """Any response: that the object is missing is one, too."""
    monkeypatch.setattr("keyturn_workers.pipeline.sources.bucket._RESPONSE_S", 0.05)
    storage = Away()
    bucket = _bucket(storage)
    await bucket.check()
    with pytest.raises(SourceUnavailableError):
        await bucket.head(KEY)
    bucket._away_until_s = 0.0
    again = await asyncio.gather(*(bucket.head(KEY) for _ in range(3)), return_exceptions=True)
    assert sum("did not respond" in str(each) for each in again) == 2
    assert storage.calls["asked"] == 2
    bucket._away_until_s = 0.0
    storage.responds = True
    if there:
        storage.plant(KEY, b"", NONE)
    await asyncio.gather(bucket.head(KEY), return_exceptions=True)
    now = await asyncio.gather(*(bucket.head(KEY) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(each, ObjectHead if there else SourceMissingError) for each in now)


async def test_a_request_that_fails_for_one_object_holds_up_no_other() -> None:
    """As of a name that the server takes for none, or an object with a key of its owner's."""
    storage = MemoryStorage()
    bucket = _bucket(storage)
    await bucket.check()
    await _named(storage)
    storage.fail_next("head", RequestFailedError("head: 400"))
    with pytest.raises(SourceUnavailableError, match="head: 400"):
        await bucket.head("in/odd")
    assert (await bucket.head(KEY)).size_bytes == 3
    assert [row.key for row in (await bucket.list_page()).objects] == [KEY]


# What is deleted.


class HangingDeletes(MemoryStorage):
    """Its deletes get no response."""

    async def delete_version(self, key: str, version_id: str) -> None:
        self.calls[f"{key} {version_id}"] += 1
        await asyncio.Event().wait()


async def test_deletes_without_a_response_hold_up_few_uploads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("keyturn_workers.pipeline.sources.bucket._DELETE_TURN_S", 0.05)
    storage = HangingDeletes(versioned=True)
    bucket = _bucket(storage, delete=True)
    named = await _named(storage)
    deletes = [asyncio.create_task(bucket.delete_read(named)) for _ in range(50)]
    done, held = await asyncio.wait(deletes, timeout=1)
    assert (len(done), len(held), storage.calls[f"{KEY} {named.version}"]) == (42, 8, 8)
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)


async def test_a_delete_without_a_response_refuses_no_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may hang forever, so it must not be the one caller that tries again after a pause."""
    monkeypatch.setattr("keyturn_workers.pipeline.sources.bucket._PAUSES_S", (0.01, 0.01))
    hangs = asyncio.Event()

    class Hangs(HangingDeletes):
        async def delete_version(self, key: str, version_id: str) -> None:
            hangs.set()
            await super().delete_version(key, version_id)

    storage = Hangs(versioned=True)
    bucket = _bucket(storage, delete=True)
    named = await _named(storage)
    await bucket.check()
    storage.fail_next("head", StorageUnavailableError("head: SlowDown"))
    with pytest.raises(SourceUnavailableError):
        await bucket.head(KEY)
    delete = asyncio.create_task(bucket.delete_read(named))
    await hangs.wait()
    assert (await bucket.head(KEY)).size_bytes == 3
    assert await _read(bucket, named) == b"one"
    delete.cancel()
    await asyncio.gather(delete, return_exceptions=True)


async def test_a_call_from_before_the_pause_lets_no_second_caller_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its end frees no place that it did not take."""
    monkeypatch.setattr("keyturn_workers.pipeline.sources.bucket._PAUSES_S", (0.01, 0.01))
    storage = Away()
    bucket = _bucket(storage)
    await bucket.check()
    earlier = asyncio.create_task(bucket.head(KEY))
    await asyncio.sleep(0)
    storage.fail_next("list_entries", StorageUnavailableError("list: SlowDown"))
    with pytest.raises(SourceUnavailableError):
        await bucket.list_page()
    bucket._away_until_s = 0.0
    trial = asyncio.create_task(bucket.head(KEY))
    await asyncio.sleep(0)
    earlier.cancel()
    await asyncio.gather(earlier, return_exceptions=True)
    with pytest.raises(SourceUnavailableError, match="did not respond"):
        await bucket.head(KEY)
    assert storage.calls["asked"] == 2
    trial.cancel()
    await asyncio.gather(trial, return_exceptions=True)


async def test_deletes_of_a_slow_source_all_have_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All together they take longer than one waits in vain; no single one does."""

    class Slow(MemoryStorage):
        async def delete_version(self, key: str, version_id: str) -> None:
            await asyncio.sleep(0.15)
            await super().delete_version(key, version_id)

    monkeypatch.setattr("keyturn_workers.pipeline.sources.bucket._DELETE_TURN_S", 0.6)
    storage = Slow(versioned=True)
    bucket = _bucket(storage, delete=True)
    named = [await _named(storage, key=f"in/{number}") for number in range(50)]
    await asyncio.gather(*map(bucket.delete_read, named))
    assert list(storage.stored_keys()) == []


async def test_where_versioning_is_suspended_no_older_object_is_hidden() -> None:
    """A delete marker would replace the object that has no version."""
    storage = MemoryStorage()
    await _named(storage, b"one")
    storage.set_versioning("Enabled")
    named = await _named(storage, b"two")
    storage.set_versioning("Suspended")
    await _bucket(storage, delete=True).delete_read(named)
    assert (await storage.read(KEY))[1] == b"one"
    assert not any([row.is_delete_marker async for row in storage.list_versions("")])


@pytest.mark.parametrize("delete", [True, "unconditional"])
@pytest.mark.parametrize("versioned", [False, True])
async def test_what_was_read_is_deleted(*, delete: bool | str, versioned: bool) -> None:
    storage = MemoryStorage(versioned=versioned)
    bucket = _bucket(storage, delete=delete)
    named = await _named(storage)
    for _ in range(2):  # what is gone is no error
        await bucket.delete_read(named)
        assert [row async for row in storage.list_versions("")] == []
        assert list(storage.stored_keys()) == []


@pytest.mark.parametrize("delete", [True, "unconditional"])
@pytest.mark.parametrize("storage_class", [MemoryStorage, IgnoresConditions])
@pytest.mark.parametrize("versioned", [False, True])
async def test_what_came_after_it_stays(
    *, delete: bool | str, storage_class: type[MemoryStorage], versioned: bool
) -> None:
    storage = storage_class(versioned=versioned)
    bucket = _bucket(storage, delete=delete)
    named = await _named(storage, b"one")
    later = await _named(storage, b"two")
    await bucket.delete_read(named)
    assert (await storage.read(KEY))[1] == b"two"
    assert (await storage.head(KEY)).version_id == later.version


async def test_nothing_is_deleted_unless_the_source_says_so() -> None:
    storage = MemoryStorage()
    await _bucket(storage).delete_read(await _named(storage))
    assert list(storage.stored_keys()) == [KEY]
    assert storage.calls["delete_if_match"] == 0


async def test_an_unversioned_object_stays_where_conditions_are_ignored() -> None:
    """Unless the setting takes the risk. What is tried is tried once, and removed."""
    storage = IgnoresConditions()
    named = await _named(storage)
    bucket = _bucket(storage, delete=True)
    await bucket.delete_read(named)
    await bucket.delete_read(named)
    assert list(storage.stored_keys()) == [KEY]
    assert storage.calls["put"] == 1
    await _bucket(storage, delete="unconditional").delete_read(named)
    assert list(storage.stored_keys()) == []


async def test_an_unversioned_object_stays_where_conditions_cannot_be_tried() -> None:
    storage = MemoryStorage()
    named = await _named(storage)
    storage.fail_next("put", RefusedError("put: AccessDenied"))
    await _bucket(storage, delete=True).delete_read(named)
    assert list(storage.stored_keys()) == [KEY]


async def test_the_version_null_can_be_written_over_so_it_is_deleted_conditionally() -> None:
    """As in a bucket whose versioning is suspended."""
    storage = MemoryStorage()
    named = (await _named(storage)).model_copy(update={"version": "null"})
    storage.plant(KEY, b"two", NONE)
    bucket = _bucket(storage, delete=True)
    await bucket.delete_read(named)
    assert list(storage.stored_keys()) == [KEY]
    assert storage.calls["delete_version"] == 0


@pytest.mark.parametrize(
    "met", [StorageUnavailableError("delete: SlowDown"), RefusedError("delete: AccessDenied")]
)
async def test_a_failure_to_delete_ends_no_upload(
    met: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyturn_workers.pipeline.sources.bucket._PAUSES_S", (0.01, 0.01))
    storage = MemoryStorage(versioned=True)
    bucket = _bucket(storage, delete=True)
    named = await _named(storage)
    storage.fail_next("delete_version", met)
    await bucket.delete_read(named)
    assert list(storage.stored_keys()) == [KEY]
    await bucket.delete_read(named)
    assert list(storage.stored_keys()) == []


async def test_nothing_is_deleted_from_keyturns_own_bucket() -> None:
    """By a worker that could not reach the source when it started, and finds its target stored."""
    own = MemoryStorage(versioned=True)
    named = await _named(own)
    await _bucket(own, own, delete=True).delete_read(named)
    assert (await own.read(KEY))[1] == b"one"


async def test_a_bucket_of_ours_that_fails_ends_no_upload() -> None:
    own, storage = MemoryStorage(), MemoryStorage(versioned=True)
    named = await _named(storage)
    own.fail_next("put", StorageUnavailableError("put: SlowDown"))
    bucket = _bucket(storage, own, delete=True)
    await bucket.delete_read(named)
    assert list(storage.stored_keys()) == [KEY]


@pytest.mark.parametrize("storage_class", [MemoryStorage, IgnoresConditions])
async def test_an_older_version_does_not_come_back(storage_class: type[MemoryStorage]) -> None:
    storage = storage_class(versioned=True)
    older = await _named(storage, b"one")
    await _bucket(storage, delete=True).delete_read(await _named(storage, b"two"))
    assert list(storage.stored_keys()) == []
    rows = [row async for row in storage.list_versions("")]
    assert [(row.is_delete_marker, row.version_id) for row in rows[1:]] == [(False, older.version)]
    assert rows[0].is_delete_marker


async def test_a_version_that_is_not_the_current_one_needs_no_marker() -> None:
    storage = MemoryStorage(versioned=True)
    named = await _named(storage, b"one")
    await _named(storage, b"two")
    await _bucket(storage, delete=True).delete_read(named)
    assert (await storage.read(KEY))[1] == b"two"
    assert len([row async for row in storage.list_versions("")]) == 1


@pytest.mark.parametrize("storage_class", [MemoryStorage, IgnoresConditions])
@pytest.mark.parametrize("moment", ["head", "delete_if_match"])
async def test_a_marker_hides_no_object_that_comes_meanwhile(
    storage_class: type[MemoryStorage], moment: str
) -> None:
    storage = storage_class(versioned=True)
    await _named(storage, b"one")
    named = await _named(storage, b"two")

    async def write() -> None:
        storage.plant(KEY, b"three", NONE)

    bucket = _bucket(storage, delete=True)
    storage.before_next(moment, write)
    await bucket.delete_read(named)
    assert (await storage.read(KEY))[1] == b"three"


@pytest.mark.parametrize(
    "met", [StorageUnavailableError("not in byte order"), RefusedError("AccessDenied")]
)
async def test_a_version_is_deleted_where_versions_cannot_be_listed(met: Exception) -> None:
    storage = MemoryStorage(versioned=True)
    await _named(storage, b"one")
    named = await _named(storage, b"two")
    storage.fail_next("list_versions", met)
    await _bucket(storage, delete=True).delete_read(named)
    assert (await storage.read(KEY))[1] == b"one"


@pytest.mark.parametrize(
    ("storage", "delete", "deletion"),
    [
        (MemoryStorage(), False, "never"),
        (MemoryStorage(versioned=True), True, "by version"),
        (MemoryStorage(versioned=True), "unconditional", "by version"),
        (MemoryStorage(), True, "conditionally"),
        (IgnoresConditions(), True, "not possible"),
        (IgnoresConditions(), "unconditional", "unconditionally"),
    ],
)
async def test_how_objects_are_deleted_is_found_out(
    storage: MemoryStorage, delete: bool | str, deletion: str
) -> None:
    assert await _bucket(storage, delete=delete).find_deletion() == deletion
    assert list(storage.stored_keys()) == []


# What a request may name.


def _request(named: SourceObject, **changes: Any) -> UploadRequested:
    document = {
        "upload_id": named.upload_id("test"),
        "project": "acme",
        "key": "a",
        "requested_at": AT,
        "body": {"source": named.model_dump(exclude_none=True)},
    }
    return UploadRequested.model_validate(document | changes)


@pytest.mark.parametrize(
    ("named", "changes", "error"),
    [
        ({}, {}, None),
        ({"name": "lake"}, {}, UnknownSourceError),
        ({}, {"project": "other"}, NotPermittedError),
        ({}, {"key": "b"}, NotPermittedError),
        ({"key": "out/a"}, {}, NotPermittedError),
        ({"key": "in/../a"}, {}, NotPermittedError),
        ({}, {"upload_id": "2f6c9a0e-1111-4111-8111-111111111111"}, MalformedRequestError),
    ],
)
def test_a_request_names_one_object_and_its_one_place(
    named: dict[str, Any], changes: dict[str, Any], error: type[CodedError] | None
) -> None:
    fields = {"name": "drop", "key": KEY, "etag": "abc", "size": 3}
    request = _request(SourceObject(**{**fields, **named}), **changes)
    sources = Sources("test", {"drop": _bucket(MemoryStorage())})
    if error is None:
        assert sources.bucket_of(request) is sources.buckets["drop"]
    else:
        with pytest.raises(error):
            sources.bucket_of(request)


def test_an_id_is_of_one_deployment() -> None:
    named = SourceObject(name="drop", key=KEY, etag="abc", size=3)
    with pytest.raises(MalformedRequestError, match="upload_id"):
        Sources("other", {"drop": _bucket(MemoryStorage())}).bucket_of(_request(named))
