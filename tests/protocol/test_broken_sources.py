"""Objects of a source with a guard taken out: each is caught, and the real ones hold (SPEC 17)."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn_workers.pipeline.sources.bucket import SourceBucket
from keyturn_workers.pipeline.sources.port import SourceReader, Sources
from keyturn_workers.pipeline.upload.attempt import Upload
from keyturn_workers.pipeline.upload.uploader import Uploader, UploadResult
from tests.protocol.hostile import HostilePublisher
from tests.protocol.process import Options, Parts
from tests.protocol.stories import begin, stop_at, violations, without

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn.messages import SourceObject
    from keyturn_workers.core.storage_port import ObjectStream
    from tests.protocol.world import World

VERSIONED: Final = Options(source_versioned=True)
BOTH: Final = pytest.mark.parametrize(
    "options", [None, VERSIONED], ids=["unversioned", "versioned"]
)
LOST: Final = "in/acme/s was deleted before it was published as stored"
A, B = b"a" * 90, b"b" * 90


def _is_there(world: World, body: bytes) -> bool:
    return any(stored.body == body for stored in world.source.current_objects().values())


def an_object_that_is_taken_in(world: World) -> None:
    begin(world, "a")
    upload = world.upload_from_source(world.drop("acme", "s", A), A)
    world.run()
    if not world.events_of_type("upload.stored") or not world.ended(upload):
        world.oracle.violated("it was not stored")
    if _is_there(world, A):
        world.oracle.violated("it is still in the source")


@BOTH
def test_an_object_is_stored_and_then_deleted_from_its_source(options: Options | None) -> None:
    assert violations(an_object_that_is_taken_in, options=options) == []


class _DeletesFirst(Uploader):
    """Deletes the body as soon as the object is stored, whatever becomes of the event."""

    async def serve(self, request: Any, publisher: str, *, seen_before: bool) -> UploadResult:
        result = await super().serve(request, publisher, seen_before=seen_before)
        await self.discard_body(request, publisher)
        return result


@BOTH
def test_the_source_is_deleted_after_the_event_is_confirmed(options: Options | None) -> None:
    found = violations(an_object_that_is_taken_in, Parts(uploader=_DeletesFirst), options)
    assert LOST in found


def a_worker_that_dies_at_its_event(world: World) -> None:
    """The object is stored, and its owner empties the source before the next delivery."""
    begin(world, "a")
    upload = world.upload_from_source(world.drop("acme", "s", A), A)
    event = stop_at(world, "publish upload.stored")
    world.crash(event.sender, arriving=lambda _: False)
    world.source.removed("in/acme/s")
    world.run()
    if [event.type for event in world.ended(upload)] != ["upload.stored"]:
        world.oracle.violated("it was stored, and the answer is another")


class _ReadsTheSourceFirst(Uploader):
    """Opens the source before it looks at the target."""

    async def serve(self, request: Any, publisher: str, *, seen_before: bool) -> UploadResult:
        upload = Upload(request, publisher)
        if upload.source is not None:
            bucket = self._context.sources.bucket_of(request)
            async with bucket.stream(upload.source):
                pass
        return await super().serve(request, publisher, seen_before=seen_before)


@BOTH
def test_a_redelivery_is_answered_from_the_target(options: Options | None) -> None:
    if options is None:
        assert violations(a_worker_that_dies_at_its_event) == []
        found = violations(a_worker_that_dies_at_its_event, Parts(uploader=_ReadsTheSourceFirst))
        assert "it was stored, and the answer is another" in found
    else:  # the version is still there, under a delete marker
        assert violations(a_worker_that_dies_at_its_event, options=options) == []


def an_object_that_is_written_over_before_it_is_read(world: World) -> None:
    begin(world, "a")
    named = world.drop("acme", "s", A)
    upload = world.upload_from_source(named, A)
    read = stop_at(world, "stream", "in/acme/s")
    world.source.written("in/acme/s", B)
    world.run()
    assert read.state
    ends: list[Any] = world.ended(upload)
    if [getattr(end, "code", "") for end in ends] != ["source_changed"]:
        world.oracle.violated("another object than the one that was named was ingested")
    if not _is_there(world, B):
        world.oracle.violated("an object that was not ingested is gone")


class _ReadsWhatIsThere(SourceBucket):
    """Reads the S3 key, whatever its ETag is."""

    @asynccontextmanager
    async def stream(self, named: SourceObject) -> AsyncIterator[ObjectStream]:
        async with self._storage.stream(named.key) as stream:
            yield stream


def test_an_object_that_has_changed_is_not_stored() -> None:
    assert violations(an_object_that_is_written_over_before_it_is_read) == []
    found = violations(
        an_object_that_is_written_over_before_it_is_read, Parts(source_bucket=_ReadsWhatIsThere)
    )
    assert "another object than the one that was named was ingested" in found


def an_object_that_is_written_over_before_it_is_deleted(world: World) -> None:
    begin(world, "a")
    world.upload_from_source(world.drop("acme", "s", A), A)
    event = stop_at(world, "publish upload.stored")
    world.source.written("in/acme/s", B)
    without(world)
    assert event.state
    world.run()
    if not _is_there(world, B):
        world.oracle.violated("a later object is gone, or hidden")


class _DeletesWhatIsThere(SourceBucket):
    """Deletes by the S3 key alone."""

    async def delete_read(self, named: SourceObject) -> None:
        await self._storage.delete(named.key)


@pytest.mark.parametrize(
    "options",
    [
        None,
        VERSIONED,
        Options(source_honors_conditions=False),
        Options(source_versioned=True, source_honors_conditions=False),
    ],
)
def test_only_what_was_read_is_deleted(options: Options | None) -> None:
    assert violations(an_object_that_is_written_over_before_it_is_deleted, options=options) == []
    found = violations(
        an_object_that_is_written_over_before_it_is_deleted,
        Parts(source_bucket=_DeletesWhatIsThere),
        options,
    )
    assert found
    assert set(found) <= {LOST, "a later object is gone, or hidden"}


class _TrustsConditions(SourceBucket):
    """Takes it that every storage honors the condition of a delete."""

    async def _deletes_conditionally(self) -> bool:
        return True


def test_a_condition_counts_only_where_it_was_seen_to_be_honored() -> None:
    found = violations(
        an_object_that_is_written_over_before_it_is_deleted,
        Parts(source_bucket=_TrustsConditions),
        Options(source_honors_conditions=False),
    )
    assert LOST in found


def an_id_that_names_two_objects(world: World) -> None:
    """A publisher has a second object taken for the first one, which is of the same length."""
    begin(world, "a")
    first = world.drop("acme", "s", A)
    world.upload_from_source(first, A, request_id=world._id())
    world.run()
    taken = next(iter(world.requests[name] for name in reversed(world.requests)))["upload_id"]
    world.upload_from_source(world.drop("acme", "s", B), B, request_id=taken, honest=False)
    world.run()
    if not _is_there(world, B):
        world.oracle.violated("an object that was not ingested is gone")


class _TakesAnyId(Sources):
    """Checks no id."""

    def bucket_of(self, request: Any) -> SourceReader:
        return self.buckets[request.body.source.name]


def test_an_id_names_one_object_of_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(an_id_that_names_two_objects) == []
    monkeypatch.setattr(Sources, "bucket_of", _TakesAnyId.bucket_of)
    assert LOST in violations(an_id_that_names_two_objects)


def a_body_under_the_id_of_an_object(world: World) -> None:
    """A publisher sends a body of its own under the id that an object of the source will have."""
    begin(world, "a")
    named = world.drop("acme", "s", A)
    its_id = world.source_id(named)
    world.upload("acme", "s", B, publisher="second", request_id=its_id, honest=False)
    world.run()
    world.upload_from_source(named, A, publisher="second", honest=False)
    world.run()
    if not _is_there(world, A):
        world.oracle.violated("an object that was not ingested is gone")


def test_a_publishers_own_body_is_not_taken_for_an_object_of_a_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_body_under_the_id_of_an_object) == []
    monkeypatch.setattr(Upload, "tag_publisher", property(lambda upload: upload.publisher))
    found = violations(a_body_under_the_id_of_an_object)
    assert "an object that was not ingested is gone" in found


def test_two_publishers_that_name_one_object_get_the_same_answer() -> None:
    def story(world: World) -> None:
        begin(world, "a")
        named = world.drop("acme", "s", A)
        for publisher in ("api", "second", "api"):
            world.upload_from_source(named, A, publisher=publisher)
            world.run()
        if len(world.events_of_type("upload.stored")) != 4:  # that of `a` too
            world.oracle.violated("a publisher got another answer")

    assert violations(story) == []


def test_a_publisher_without_the_grant_is_refused_whatever_is_stored() -> None:
    """It signs the very bytes of another's request."""

    def story(world: World) -> None:
        begin(world, "a")
        named = world.drop("acme", "s", A)
        upload = world.upload_from_source(named, A)
        world.run()
        taken = next(each for each in world.sent_requests.values() if each.id == upload)
        HostilePublisher(world, "other").sign_as_own(taken)
        world.run()
        (refused,) = world.events_of_type("upload.rejected")
        if (refused.publisher, refused.code) != ("other", "not_permitted"):
            world.oracle.violated("it was refused in another way")

    assert violations(story) == []
