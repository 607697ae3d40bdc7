"""PUT of an object: what is taken, what is refused, what is waited for (SPEC 9.4)."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from contracts.errors import StorageUnavailableError, all_errors
from contracts.messages import ProjectEnrolled, UploadRejected, UploadStored
from contracts.names import is_uuid
from contracts.publisher import (
    BrokerUnavailableError,
    EventsUnavailableError,
    NotDeliveredError,
    OutcomeUnknownError,
    PublisherError,
)
from tests.unit.gateway.asgi import Connection
from tests.unit.gateway.bench import KEY, NEW_API_KEY
from tests.unit.gateway.serving import PATH, Serving
from tests.unit.gateway.test_problems import STATUSES
from workers.gateway import uploads as uploads_module
from workers.gateway.uploads import _Slots, wait_asked

if TYPE_CHECKING:
    from contracts.messages import Event

_AT = "2026-11-24T10:00:00.000000Z"


def _stored(upload_id: str) -> Event:
    return UploadStored(upload_id=upload_id, project="acme", key=KEY, size=4, generation=1, at=_AT)


def _rejected(code: str) -> object:
    def told(upload_id: str) -> Event:
        return UploadRejected(
            upload_id=upload_id, project="acme", code=code, detail="said so", at=_AT
        )

    return told


async def test_a_body_is_handed_in_under_its_key() -> None:
    serving = Serving()
    got = await serving.ask("PUT", body=[b"bo", b"", b"dy"], headers={"content-type": "text/x"})
    assert got.status == 202
    (upload,) = serving.publisher.uploads
    assert (upload.project, upload.key, upload.body) == ("acme", KEY, b"body")
    assert upload.content_type == "text/x"
    assert got.document() == {"upload_id": upload.upload_id}
    assert is_uuid(upload.upload_id)
    assert not serving.publisher.waits  # nobody asked to wait
    assert "preference-applied" not in got.headers
    assert serving.counted("received_bytes_total") == 4


async def test_an_empty_body_is_one_too() -> None:
    serving = Serving()
    assert (await serving.ask("PUT")).status == 202
    (upload,) = serving.publisher.uploads
    assert (upload.body, upload.content_type, upload.metadata) == (b"", None, {})


async def test_metadata_comes_from_headers_of_its_name() -> None:
    serving = Serving()
    headers = {
        "X-Keyturn-Meta-Author": "kim",
        "x-keyturn-meta-latin": "\xfcber",
        "x-keyturn-meta-utf8": "über".encode().decode("latin-1"),
        "x-keyturn-meta-encoded": "=?utf-8?b?w7xiZXI=?=",
        "x-keyturn-meta-encore": "no enc- name",
        "x-amz-meta-other": "x",
    }
    assert (await serving.ask("PUT", headers=headers)).status == 202
    (upload,) = serving.publisher.uploads
    assert upload.metadata == {
        "author": "kim",
        "latin": "über",
        "utf8": "über",
        "encoded": "über",
        "encore": "no enc- name",
    }


@pytest.mark.parametrize(
    "headers",
    [
        {"x-keyturn-meta-enc-algo": "deleted"},
        {"x-keyturn-meta-enc-upload": "x"},
        {"X-Keyturn-Meta-Enc-Dek-User": "x"},
        {"x-keyturn-meta-": "no name"},
        {"x-keyturn-meta-under_score": "x"},
        {"x-keyturn-meta-a": "x" * 1024},
        {"x-keyturn-meta-a": "a\x00b"},
        {"x-keyturn-meta-a": "a\x7fb"},
        {"content-type": "text/\xe4"},
        {"content-type": "x" * 2000},
        {"content-encoding": "gzip"},
        {"content-encoding": "identity"},
        {"content-range": "bytes 0-1/4"},
    ],
)
async def test_what_an_object_cannot_keep_is_refused(headers: dict[str, str]) -> None:
    serving = Serving()
    got = await serving.ask("PUT", headers=headers, body=b"body")
    assert (got.status, got.document()["code"]) == (400, "malformed_request")
    assert "connection" not in got.headers  # what was left of the body was little, and is read
    assert not serving.publisher.uploads


@pytest.mark.parametrize(
    "value", ["=?a?q?x" * 9000, "x" * 60_000, "=?\xe9?b?YQ==?="], ids=["coded", "long", "odd"]
)
async def test_metadata_that_takes_long_to_read_is_not_read(value: str) -> None:
    """Decoding grows with the square of the length: 63 KB held up everybody for 3 seconds."""
    serving = Serving()
    began = time.monotonic()
    got = await serving.ask("PUT", headers={"x-keyturn-meta-a": value}, body=b"body")
    assert got.status in (202, 400)
    assert time.monotonic() - began < 0.5


async def test_who_waits_and_goes_is_waited_for_no_longer() -> None:
    serving = Serving()
    connection = Connection()
    asking = asyncio.create_task(
        serving.ask("PUT", body=b"x", headers={"prefer": "wait=20"}, on=connection)
    )
    for _ in range(50):
        await asyncio.sleep(0)
    assert serving.publisher.waits
    connection.gone.set()
    async with asyncio.timeout(5):
        await asking


async def test_a_project_has_no_more_than_half_of_the_places() -> None:
    slots, leave = _Slots(4), asyncio.Event()
    taken: list[str] = []

    async def take(project: str) -> None:
        async with slots.taken(project):
            taken.append(project)
            await leave.wait()

    tasks = [asyncio.create_task(take(project)) for project in ("a", "a", "a", "b", "b")]
    for _ in range(20):
        await asyncio.sleep(0)
    assert sorted(taken) == ["a", "a", "b", "b"]
    leave.set()
    await asyncio.gather(*tasks)
    assert not slots._shares


async def test_nobody_waits_long_for_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads_module, "SLOT_WAIT_S", 0.05)
    serving = Serving(upload_concurrency=1)
    first = Connection()
    asking = asyncio.create_task(serving.ask("PUT", body=[b"bo", None], on=first))
    for _ in range(20):
        await asyncio.sleep(0)
    got = await serving.ask("PUT", body=[b"other"])
    assert (got.status, got.headers["retry-after"]) == (503, "1")
    first.gone.set()
    await asking


async def test_what_is_to_replace_an_object_is_refused_at_once() -> None:
    """A key is written once: no object can be the one that is meant (RFC 9110, 13.1.1)."""
    serving = Serving()
    got = await serving.ask("PUT", headers={"if-match": '"x"'}, body=b"body")
    assert (got.status, got.headers["connection"]) == (412, "close")
    assert not serving.publisher.uploads
    created = await serving.ask("PUT", headers={"if-none-match": "*"}, body=b"body")
    assert created.status == 202


async def test_a_metadata_name_that_stands_twice_is_refused() -> None:
    serving = Serving()
    got = await serving.ask(
        "PUT", headers={"x-keyturn-meta-a": "1", "X-Keyturn-Meta-A": "2"}, body=b"body"
    )
    assert got.status == 400


async def test_who_may_not_put_sends_no_body() -> None:
    """Refused before a byte of the body is looked at, and before anything is published."""
    serving = Serving()
    for target, key, status in (
        (PATH, NEW_API_KEY, 401),
        (PATH, None, 401),
        ("/v1/projects/acme/objects/a//b", "kt_" + "k" * 43, 404),
    ):
        got = await serving.ask("PUT", target, key=key, body=[None])
        assert got.status == status
        assert got.headers["connection"] == "close"
    assert not serving.publisher.uploads


async def test_a_body_that_is_too_long_is_refused_by_what_it_says_and_by_what_it_is() -> None:
    serving = Serving(max_bytes=10)
    said = await serving.ask("PUT", headers={"content-length": "11"}, body=[None])
    assert (said.status, said.document()["code"]) == (413, "body_too_large")
    unsaid = await serving.ask("PUT", body=[b"x" * 6, b"x" * 5, None])
    assert unsaid.status == 413
    nonsense = await serving.ask("PUT", headers={"content-length": "9" * 30}, body=[None])
    assert nonsense.status == 413
    assert not serving.publisher.uploads
    assert (await serving.ask("PUT", body=b"x" * 10)).status == 202
    assert (await serving.ask("PUT", headers={"content-length": "10"}, body=b"x" * 10)).status == (
        202
    )


async def test_a_client_that_sends_nothing_is_given_up() -> None:
    serving = Serving(idle_timeout_s=0.02)
    got = await serving.ask("PUT", body=[b"bo", None])
    assert (got.status, got.headers["connection"]) == (408, "close")
    assert not serving.publisher.uploads


async def test_a_client_that_goes_hands_in_nothing() -> None:
    serving = Serving()
    connection = Connection()
    connection.gone.set()
    await serving.ask("PUT", body=[b"bo", None], on=connection)
    assert not serving.publisher.uploads
    assert connection.status == 408  # to nobody


async def test_a_few_bodies_are_taken_at_once() -> None:
    serving = Serving(upload_concurrency=1)
    first, second = Connection(), Connection()
    asking = asyncio.create_task(serving.ask("PUT", body=[b"bo", None], on=first))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not first.body
    waiting = asyncio.create_task(serving.ask("PUT", body=[b"other"], on=second))
    for _ in range(20):
        await asyncio.sleep(0)
    assert second.body  # not a byte of it is read yet
    first.gone.set()
    await asyncio.gather(asking, waiting)
    assert second.status == 202


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NotDeliveredError("at amqp://secret"), False),
        (BrokerUnavailableError("at amqp://secret"), False),
        (OutcomeUnknownError("at amqp://secret"), True),
        (PublisherError("at amqp://secret"), False),
    ],
)
async def test_what_cannot_be_published_is_for_later(error: PublisherError, *, told: bool) -> None:
    """Only where the broker may have it is the id told, by which one can find out."""
    serving = Serving()
    serving.publisher.fails = error
    got = await serving.ask("PUT", body=b"x", headers={"prefer": "wait=5"})
    assert (got.status, got.headers["retry-after"]) == (503, "1")
    assert ("upload_id" in got.document()) is told
    assert "secret" not in got.content.decode()


async def test_a_staging_that_fails_is_for_later() -> None:
    serving = Serving()
    serving.publisher.fails = StorageUnavailableError("put: SlowDown")
    got = await serving.ask("PUT", body=b"x")
    assert (got.status, got.document()["code"]) == (503, "storage_unavailable")


async def test_who_waits_learns_that_it_is_stored_and_where() -> None:
    serving = Serving()
    serving.publisher.tells = _stored
    got = await serving.ask(
        "PUT", "/v1/projects/acme/objects/a%20b/%C3%BC", body=b"x", headers={"prefer": "wait=7"}
    )
    assert got.status == 201
    assert got.headers["location"] == "/v1/projects/acme/objects/a%20b/%C3%BC"
    assert got.headers["preference-applied"] == "wait=7"
    assert got.document() == {"upload_id": serving.publisher.uploads[0].upload_id}
    assert serving.publisher.waits == [7]


@pytest.mark.parametrize("code", sorted(all_errors()))
async def test_who_waits_learns_of_a_refusal_by_its_status(code: str) -> None:
    serving = Serving()
    serving.publisher.tells = _rejected(code)
    got = await serving.ask("PUT", body=b"x", headers={"prefer": "wait=7"})
    assert got.status == STATUSES[code]
    document = got.document()
    assert (document["code"], document["detail"]) == (code, "said so")
    assert document["upload_id"] == serving.publisher.uploads[0].upload_id


@pytest.mark.parametrize("error", [None, EventsUnavailableError("no stream")])
async def test_who_waits_in_vain_is_told_that_it_was_handed_in(error: Exception | None) -> None:
    serving = Serving()
    serving.publisher.wait_fails = error
    got = await serving.ask("PUT", body=b"x", headers={"prefer": "wait=1"})
    assert (got.status, got.headers["preference-applied"]) == (202, "wait=1")


async def test_another_event_of_that_id_says_nothing() -> None:
    serving = Serving()
    serving.publisher.tells = lambda upload_id: ProjectEnrolled(
        request_id=upload_id, project="acme", generation=1, at=_AT
    )
    assert (await serving.ask("PUT", body=b"x", headers={"prefer": "wait=1"})).status == 202


@pytest.mark.parametrize(
    ("values", "wait_s"),
    [
        ([], None),
        (["wait=5"], 5),
        (["WAIT=5"], 5),
        (["Wait = 5"], 5),
        (['wait="5"'], 5),
        (["respond-async, wait=5"], 5),
        (["wait=5; foo=bar, respond-async"], 5),
        (["respond-async", "wait=5"], 5),
        (["wait=5, wait=9"], 5),  # RFC 7240, 2: the first one
        (["wait=0"], 0),
        (["wait=999999"], 20),
        (["wait=21"], 20),
        (["wait"], None),
        (["wait="], None),
        (["wait=-5"], None),
        (["wait=5.5"], None),
        (["wait=5s"], None),
        (["wait=1234567"], 20),
        (["foo;wait=5"], None),  # a parameter of another preference
        (['foo="a, wait=5"'], None),
        (['foo="a, wait=5", wait=7'], 7),
        (["await=5"], None),
        (["x-wait=5"], None),
        (["return=minimal"], None),
    ],
)
def test_the_seconds_that_are_asked_for(values: list[str], wait_s: int | None) -> None:
    headers = Headers(raw=[(b"prefer", value.encode()) for value in values])
    assert wait_asked(headers, 20.0) == wait_s


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_whatever_is_preferred_the_wait_is_bounded(value: str) -> None:
    found = wait_asked(Headers(raw=[(b"prefer", value.encode("latin-1"))]), 20.0)
    assert found is None or 0 <= found <= 20
