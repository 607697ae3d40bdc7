"""What a publisher sends, keeps and cleans up, on connections that only note it (SPEC 6.4, 6.7)."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from keyturn.crypto import from_base64, open_sealed, transport_context, upload_info
from keyturn.errors import (
    BodyTooLargeError,
    MalformedRequestError,
    NotDeliveredError,
    OutcomeUnknownError,
    SettingsError,
    StorageUnavailableError,
)
from keyturn.identifiers import staging_s3_key
from keyturn.messages import (
    INLINE_MAX_BYTES,
    InlineBody,
    SourceBody,
    SourceObject,
    StagedBody,
    StatusFilter,
    SweepRequested,
    encode,
    parse_request,
    request_id,
)
from keyturn.publisher import Publisher
from keyturn.publisher.client import publisher_tracing
from keyturn.tracing import PublisherTracing
from keyturn.upload_ids import source_upload_id
from keyturn_workers.pipeline.upload.sessions import OpenedSessions
from tests.unit.keyturn.publisher.test_requests import API_KEY, INTAKE, SETTINGS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from aio_pika import Message

    from keyturn.crypto import Sealer
    from keyturn.messages import Request
    from keyturn.publisher.connection import BrokerConnection
    from keyturn.publisher.staging import Body, Staging

UPLOAD_ID = "2f6c9a0e-0000-4000-8000-000000000001"
LARGE = bytes(INLINE_MAX_BYTES + 1)


@dataclass
class FakeConnection:
    """Notes what is published, or fails as the broker would."""

    error: Exception | None = None
    sent: list[tuple[str, Request]] = field(default_factory=list)

    async def publish(self, routing_key: str, message: Message) -> None:
        request = parse_request(message.body)
        assert message.message_id == request_id(request)
        self.sent.append((routing_key, request))
        if self.error is not None:
            raise self.error

    async def close(self) -> None: ...


@dataclass
class FakeStaging:
    """Keeps sealed bodies by their keys."""

    error: Exception | None = None
    stored: dict[str, bytes] = field(default_factory=dict)
    puts: int = 0

    async def put(
        self, s3_key: str, sealer: Sealer, head: bytearray, rest: AsyncIterator[memoryview]
    ) -> int:
        if self.error is not None:
            raise self.error
        pieces = [sealer.header, sealer.update(head)]
        pieces += [sealer.update(block) async for block in rest]
        self.stored[s3_key] = b"".join([*pieces, sealer.finish()])
        self.puts += 1
        return len(self.stored[s3_key])

    async def delete(self, s3_key: str) -> None:
        del self.stored[s3_key]


@dataclass
class Scene:
    """A publisher, and what it reached."""

    publisher: Publisher
    connection: FakeConnection
    staging: FakeStaging


def _scene(*, staged: bool = True) -> Scene:
    connection, staging = FakeConnection(), FakeStaging()
    link = cast("BrokerConnection", connection)
    publisher = Publisher(SETTINGS, link, link, cast("Staging", staging) if staged else None)
    return Scene(publisher, connection, staging)


def _plaintext(request: Any, sealed: bytes) -> bytes:
    """What a worker opens the body to."""
    info = upload_info(request.upload_id, request.project, request.key)
    opened = OpenedSessions("test", {"main": INTAKE})
    key = opened.open_key(request.sealed_key, info, "billing")
    return open_sealed(key, transport_context(request.upload_id), sealed)


@pytest.mark.parametrize("size", [0, 1, INLINE_MAX_BYTES])
async def test_a_body_up_to_the_limit_travels_sealed_inside_the_request(size: int) -> None:
    body = b"x" * size
    scene = _scene()
    upload_id = await scene.publisher.upload("acme", "a/b", body)
    ((routing_key, request),) = scene.connection.sent
    assert routing_key == "upload.requested"
    assert request.type == "upload.requested"
    assert (request.upload_id, request.project, request.key) == (upload_id, "acme", "a/b")
    assert isinstance(request.body, InlineBody)
    assert _plaintext(request, from_base64(request.body.inline)) == body
    assert scene.staging.puts == 0


async def test_optional_fields_that_are_not_given_are_not_sent() -> None:
    scene = _scene()
    await scene.publisher.upload("acme", "a", b"")
    ((_, request),) = scene.connection.sent
    assert request.model_fields_set == {
        "type", "upload_id", "project", "key", "requested_at", "sealed_key", "body",
    }  # fmt: skip


@pytest.mark.parametrize("size", [INLINE_MAX_BYTES, INLINE_MAX_BYTES + 1])
async def test_a_body_of_every_form_arrives_as_it_is(size: int, tmp_path: Path) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    path = tmp_path / "body"
    path.write_bytes(data)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 1000):
            yield data[start : start + 1000]

    bodies: list[Body] = [
        data, bytearray(data), memoryview(data), path, io.BytesIO(data), pieces(),
    ]  # fmt: skip
    for body in bodies:
        scene = _scene()
        await scene.publisher.upload("acme", "a", body)
        ((_, request),) = scene.connection.sent
        assert request.type == "upload.requested"
        if isinstance(request.body, InlineBody):
            assert size == INLINE_MAX_BYTES
            sealed = from_base64(request.body.inline)
        else:
            (sealed,) = scene.staging.stored.values()
        assert _plaintext(request, sealed) == data


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"project": "Acme"}, "project"),
        ({"object_key": "a/../b"}, "key"),
        ({"metadata": {"enc-algo": "x"}}, "metadata"),
        ({"content_type": "a\nb"}, "content_type"),
        ({"upload_id": "not-an-id"}, "upload_id"),
    ],
)
async def test_a_malformed_upload_is_refused_before_anything_is_sent_or_read(
    change: Any, named: str
) -> None:
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(True)
        yield b""

    scene = _scene()
    with pytest.raises(MalformedRequestError, match=named):
        await scene.publisher.upload(
            **{"project": "acme", "object_key": "a", "body": body()} | change
        )
    assert not read
    assert scene.connection.sent == []


async def test_a_larger_body_is_staged_sealed_before_its_request_is_sent() -> None:
    scene = _scene()
    upload_id = await scene.publisher.upload("acme", "a/b", LARGE)
    ((_, request),) = scene.connection.sent
    assert request.type == "upload.requested"
    assert isinstance(request.body, StagedBody)
    ((s3_key, sealed),) = scene.staging.stored.items()
    assert s3_key == staging_s3_key("billing", upload_id)
    assert request.body.staged.size == len(sealed)
    assert _plaintext(request, sealed) == LARGE


async def test_without_staging_a_larger_body_is_refused_and_nothing_is_sent() -> None:
    scene = _scene(staged=False)
    with pytest.raises(BodyTooLargeError, match="KEYTURN_S3_BUCKET"):
        await scene.publisher.upload("acme", "a/b", LARGE)
    assert scene.connection.sent == []


async def test_a_body_that_cannot_be_staged_is_not_announced() -> None:
    scene = _scene()
    scene.staging.error = StorageUnavailableError("staging failed")
    with pytest.raises(StorageUnavailableError):
        await scene.publisher.upload("acme", "a/b", LARGE)
    assert scene.connection.sent == []


async def test_the_staged_body_of_a_request_on_no_queue_is_deleted() -> None:
    scene = _scene()
    scene.connection.error = NotDeliveredError("no queue")
    with pytest.raises(NotDeliveredError):
        await scene.publisher.upload("acme", "a/b", LARGE)
    assert (scene.staging.puts, scene.staging.stored) == (1, {})


async def test_a_retry_of_an_unknown_outcome_uses_the_staged_body_and_never_deletes_it() -> None:
    """The first request may be on its queue: it needs the body whatever becomes of the retry."""
    scene = _scene()
    scene.connection.error = OutcomeUnknownError("not confirmed")
    with pytest.raises(OutcomeUnknownError):
        await scene.publisher.upload("acme", "a/b", LARGE, upload_id=UPLOAD_ID)
    scene.connection.error = NotDeliveredError("no queue")
    with pytest.raises(NotDeliveredError):
        await scene.publisher.upload("acme", "a/b", LARGE, upload_id=UPLOAD_ID)
    scene.connection.error = None
    await scene.publisher.upload("acme", "a/b", LARGE, upload_id=UPLOAD_ID)
    requests: list[Any] = [request for _, request in scene.connection.sent]
    assert scene.staging.puts == 1
    assert len(scene.staging.stored) == 1
    assert len({request.sealed_key for request in requests}) == 1
    assert len({request.requested_at for request in requests}) == len(requests) == 3
    await scene.publisher.upload("acme", "a/b", LARGE, upload_id=UPLOAD_ID)
    assert scene.staging.puts == 2  # the one before was confirmed, and is forgotten


async def test_a_source_that_fails_sends_nothing() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"a beginning"
        raise LookupError

    scene = _scene()
    with pytest.raises(LookupError):
        await scene.publisher.upload("acme", "a/b", body())
    assert scene.connection.sent == []


CALLS: dict[str, Callable[[Publisher, str], Coroutine[Any, Any, str]]] = {
    "enroll.requested": lambda publisher, project: publisher.enroll(project, api_key=API_KEY),
    "upload.requested": lambda publisher, project: publisher.upload(project, "a", b""),
    "rotation.requested": lambda publisher, project: publisher.rotate(project, api_key=API_KEY),
    "sweep.requested": lambda publisher, project: publisher.sweep(project),
    "delete.requested": lambda publisher, project: publisher.delete(project, "a"),
    "status.requested": lambda publisher, project: publisher.status("projects", project),
}
_ID_FIELDS = {
    "enroll.requested": "request_id",
    "upload.requested": "upload_id",
    "rotation.requested": "rotation_id",
    "sweep.requested": "sweep_id",
    "delete.requested": "request_id",
    "status.requested": "request_id",
}


@pytest.mark.parametrize("request_type", CALLS)
async def test_each_request_is_sent_once_by_its_type_and_its_id_is_returned(
    request_type: str,
) -> None:
    scene = _scene()
    request_id = await CALLS[request_type](scene.publisher, "acme")
    ((routing_key, request),) = scene.connection.sent
    assert routing_key == request.type == request_type
    assert getattr(request, _ID_FIELDS[request_type]) == request_id


@pytest.mark.parametrize("request_type", CALLS)
async def test_a_request_for_a_project_that_cannot_be_is_not_sent(request_type: str) -> None:
    scene = _scene()
    with pytest.raises(MalformedRequestError):
        await CALLS[request_type](scene.publisher, "No Project")
    assert scene.connection.sent == []


FOR_A_PERSON: list[Callable[[Publisher, str], Coroutine[Any, Any, str]]] = [
    lambda publisher, actor: publisher.enroll("acme", api_key=API_KEY, actor=actor),
    lambda publisher, actor: publisher.rotate("acme", api_key=API_KEY, actor=actor),
    lambda publisher, actor: publisher.sweep("acme", actor=actor),
    lambda publisher, actor: publisher.delete("acme", "a", actor=actor),
    lambda publisher, actor: publisher.status("master_keys", actor=actor),
    lambda publisher, actor: publisher.move_dead_letters(
        "replay", "keyturn.upload.dead", code="unknown_project", actor=actor
    ),
]


@pytest.mark.parametrize("call", FOR_A_PERSON)
async def test_a_request_names_the_person_if_its_name_is_one(
    call: Callable[[Publisher, str], Coroutine[Any, Any, str]],
) -> None:
    scene = _scene()
    await call(scene.publisher, "Kim Grün")
    ((_, request),) = scene.connection.sent
    assert request.type != "upload.requested"
    assert request.actor == "Kim Grün"
    for wrong in ("Kim\n", "\x1b[2J", "x" * 201, ""):
        with pytest.raises(MalformedRequestError, match="actor"):
            await call(scene.publisher, wrong)
    assert len(scene.connection.sent) == 1


async def test_a_page_of_a_report_is_requested_as_it_is_asked_for() -> None:
    scene = _scene()
    wanted = StatusFilter(state="attention")
    await scene.publisher.status("projects", filter=wanted, order="-generation", page=3, limit=9)
    ((_, request),) = scene.connection.sent
    assert request.type == "status.requested"
    assert (request.project, request.view, request.sweep_id) == ("*", "projects", None)
    assert (request.filter, request.order) == (wanted, "-generation")
    assert (request.page, request.limit, request.after) == (3, 9, None)
    with pytest.raises(MalformedRequestError, match="sweep_id"):
        await scene.publisher.status("failures", "acme")
    assert len(scene.connection.sent) == 1


async def test_dead_letters_are_moved_by_code_or_by_their_digests() -> None:
    scene = _scene()
    publisher, queue, digest = scene.publisher, "keyturn.unsigned.dead", "0" * 64
    first = await publisher.move_dead_letters(
        "discard", queue, code="bad_signature", actor="Kim", reason="a flood"
    )
    await publisher.move_dead_letters("replay", queue, letters=[digest], actor="Kim")
    requests: list[Any] = [request for _, request in scene.connection.sent]
    by_code, single = requests
    assert {routing_key for routing_key, _ in scene.connection.sent} == {"dead_letters.requested"}
    assert (by_code.request_id, by_code.project, by_code.queue) == (first, "*", queue)
    assert (by_code.action, by_code.code, by_code.letters) == ("discard", "bad_signature", None)
    assert by_code.reason == "a flood"
    assert (single.action, single.code, single.letters) == ("replay", None, (digest,))
    both: dict[str, Any] = {"code": "bad_signature", "letters": [digest]}
    for wrong in ({}, both):
        with pytest.raises(MalformedRequestError, match="either code or letters"):
            await publisher.move_dead_letters("replay", queue, actor="Kim", **wrong)
    assert len(scene.connection.sent) == 2


async def test_an_upload_from_a_source_holds_nothing_sealed_and_has_the_objects_id() -> None:
    scene = _scene()
    found = SourceObject(name="drop", key="in/a", etag="abc", version="v1", size=3)
    upload_id = await scene.publisher.upload_from_source(
        "acme", "a", found, content_type="text/plain", metadata={"author": "kim"}
    )
    ((_, request),) = scene.connection.sent
    assert request.type == "upload.requested"
    assert request.body == SourceBody(source=found)
    assert request.sealed_key is None
    assert request.upload_id == upload_id == source_upload_id("test", "drop", "in/a", "abc", "v1")
    assert (request.content_type, request.metadata) == ("text/plain", {"author": "kim"})
    with pytest.raises(MalformedRequestError, match="metadata"):
        await scene.publisher.upload_from_source("acme", "a", found, metadata={"enc-algo": "x"})
    assert len(scene.connection.sent) == 1
    await scene.publisher.upload_from_source("acme", "a", found, letter=False)
    (_, repeated) = scene.connection.sent[1]
    assert (request.leaves_letter, repeated.leaves_letter) == (True, False)


async def test_a_request_of_the_callers_own_is_sent_as_it_is_any_number_of_times() -> None:
    scene = _scene()
    kept = encode(
        SweepRequested(
            sweep_id=UPLOAD_ID,
            project="acme",
            repair=True,
            requested_at="2026-11-26T10:00:00.000000Z",
        )
    )
    for _ in range(2):
        assert await scene.publisher.send(parse_request(kept)) == UPLOAD_ID
    assert scene.connection.sent == [("sweep.requested", parse_request(kept))] * 2


# Traces, which are optional.


TRACED = SETTINGS.model_copy(update={"tracing": True})


def test_traces_are_off_by_default() -> None:
    assert publisher_tracing(SETTINGS) is None


def test_traces_are_recorded_where_they_are_on() -> None:
    assert isinstance(publisher_tracing(TRACED), PublisherTracing)


def test_a_missing_extra_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "keyturn.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(SettingsError, match=r"KEYTURN_TRACING .*keyturn\[otel\]"):
        publisher_tracing(TRACED)
