"""PUT of an object: what is taken, what is refused, what is waited for (SPEC 9.4)."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers as HttpHeaders

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import is_uuid, keyring_s3_key, staging_s3_key
from keyturn.messages import INLINE_MAX_BYTES, UploadStored
from keyturn.publisher import (
    NotDeliveredError,
    OutcomeUnknownError,
    PublisherError,
)
from keyturn_workers.core.errors import ArchivedError
from keyturn_workers.core.errors import RefusedError as StorageRefusedError
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.gateway import uploads
from keyturn_workers.gateway.request import object_path, requested_wait_s
from tests.unit.keyturn_workers.factories import MASTER_KEYS
from tests.unit.keyturn_workers.gateway.bench import KEY, NEW_API_KEY, ring_of
from tests.unit.keyturn_workers.gateway.serving import PATH, Connection, Serving
from tools.harness.local_keys import build_keyring

if TYPE_CHECKING:
    from keyturn.messages import Event

LARGE = bytes(INLINE_MAX_BYTES + 1)
_AT = "2026-11-24T10:00:00.000000Z"


def _stored(upload_id: str) -> Event:
    return UploadStored(upload_id=upload_id, project="acme", key=KEY, size=4, generation=1, at=_AT)


async def until_taken(connection: Connection) -> None:
    """Wait until the body has been read."""
    for _ in range(200):
        await asyncio.sleep(0)
    assert not [piece for piece in connection.body if piece]


async def test_a_body_is_published_under_its_key() -> None:
    serving = Serving()
    got = await serving.ask("PUT", body=[b"bo", b"", b"dy"], headers={"content-type": "text/x"})
    assert got.status == 202
    (upload,) = serving.publisher.uploads
    assert (upload.project, upload.key, upload.body) == ("acme", KEY, b"body")
    assert upload.content_type == "text/x"
    assert got.document() == {"upload_id": upload.upload_id}
    assert is_uuid(upload.upload_id)
    assert "preference-applied" not in got.headers
    assert serving.counted("received_bytes_total") == 4


async def test_an_empty_body_is_published() -> None:
    serving = Serving()
    assert (await serving.ask("PUT")).status == 202
    (upload,) = serving.publisher.uploads
    assert (upload.body, upload.content_type, upload.metadata) == (b"", None, {})


async def test_metadata_is_read_from_prefixed_headers() -> None:
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
async def test_headers_that_cannot_be_stored_are_refused(headers: dict[str, str]) -> None:
    serving = Serving()
    got = await serving.ask("PUT", headers=headers, body=b"body")
    assert (got.status, got.document()["code"]) == (400, "malformed_request")
    assert "connection" not in got.headers  # what was left of the body was little, and is read
    assert not serving.publisher.uploads


@pytest.mark.parametrize(
    "value", ["=?a?q?x" * 9000, "x" * 60_000, "=?\xe9?b?YQ==?="], ids=["coded", "long", "odd"]
)
async def test_metadata_that_takes_long_to_decode_is_refused(value: str) -> None:
    """Decoding takes quadratic time: 63 KB blocked the event loop for 3 seconds."""
    serving = Serving()
    began = time.monotonic()
    got = await serving.ask("PUT", headers={"x-keyturn-meta-a": value}, body=b"body")
    assert got.status in (202, 400)
    assert time.monotonic() - began < 0.5


async def test_waiting_for_a_slot_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_SLOT_WAIT_S", 0.05)
    serving = Serving(upload_concurrency=1, project_share=0.5)
    other = ring_of(NEW_API_KEY, "other")
    serving.bench.storage.plant(
        keyring_s3_key("other"), build_keyring(other, MASTER_KEYS), Headers({})
    )
    first = Connection()
    asking = asyncio.create_task(serving.ask("PUT", body=[LARGE, None], on=first))
    await until_taken(first)
    ours = await serving.ask("PUT", body=[LARGE])
    assert (ours.status, ours.headers["retry-after"]) == (429, "1")
    theirs = await serving.ask("PUT", object_path("other", KEY), key=NEW_API_KEY, body=[LARGE])
    assert (theirs.status, theirs.headers["retry-after"]) == (503, "1")
    assert "code" not in theirs.document()
    first.gone.set()
    await asking


async def test_if_match_is_refused_at_once() -> None:
    """A key is written once, so If-Match cannot be met (RFC 9110, 13.1.1)."""
    serving = Serving()
    got = await serving.ask("PUT", headers={"if-match": '"x"'}, body=b"body")
    assert (got.status, got.headers["connection"]) == (412, "close")
    assert not serving.publisher.uploads
    created = await serving.ask("PUT", headers={"if-none-match": "*"}, body=b"body")
    assert created.status == 202


async def test_a_metadata_name_that_occurs_twice_is_refused() -> None:
    serving = Serving()
    got = await serving.ask(
        "PUT", headers={"x-keyturn-meta-a": "1", "X-Keyturn-Meta-A": "2"}, body=b"body"
    )
    assert got.status == 400


async def test_the_body_of_an_unauthorized_put_is_not_read() -> None:
    """It is refused before the body is read, and nothing is published."""
    serving = Serving()
    for target, key, status in (
        (PATH, NEW_API_KEY, 401),
        (PATH, None, 401),
        ("/v1/projects/acme/objects/a//b", "kt_" + "k" * 43, 400),
    ):
        got = await serving.ask("PUT", target, key=key, body=[None])
        assert got.status == status
        assert got.headers["connection"] == "close"
    assert not serving.publisher.uploads


async def test_a_body_is_refused_by_its_declared_and_by_its_actual_length() -> None:
    serving = Serving(max_bytes=10)
    response = await serving.ask("PUT", headers={"content-length": "11"}, body=[None])
    assert (response.status, response.document()["code"]) == (413, "body_too_large")
    unsaid = await serving.ask("PUT", body=[b"x" * 6, b"x" * 5, None])
    assert unsaid.status == 413
    nonsense = await serving.ask("PUT", headers={"content-length": "9" * 30}, body=[None])
    assert nonsense.status == 413
    assert not serving.publisher.uploads
    assert (await serving.ask("PUT", body=b"x" * 10)).status == 202
    assert (await serving.ask("PUT", headers={"content-length": "10"}, body=b"x" * 10)).status == (
        202
    )


async def test_a_client_that_sends_nothing_times_out() -> None:
    serving = Serving(idle_timeout_s=0.02)
    got = await serving.ask("PUT", body=[b"bo", None])
    assert (got.status, got.headers["connection"]) == (408, "close")
    assert not serving.publisher.uploads


async def test_a_disconnect_during_the_body_publishes_nothing() -> None:
    serving = Serving()
    connection = Connection()
    connection.gone.set()
    await serving.ask("PUT", body=[b"bo", None], on=connection)
    assert not serving.publisher.uploads
    assert connection.status == 408  # which no client reads


async def test_larger_bodies_are_limited() -> None:
    serving = Serving(upload_concurrency=1)
    first, second = Connection(), Connection()
    asking = asyncio.create_task(serving.ask("PUT", body=[LARGE, None], on=first))
    await until_taken(first)
    headers = {"content-length": str(len(LARGE))}
    waiting = asyncio.create_task(serving.ask("PUT", body=[LARGE], on=second, headers=headers))
    for _ in range(50):
        await asyncio.sleep(0)
    assert second.body  # not a byte of it is read yet
    # One that travels in the request needs no place.
    assert (await serving.ask("PUT", body=[b"small"])).status == 202
    first.gone.set()
    await asyncio.gather(asking, waiting)
    assert second.status == 202


async def test_a_failure_of_staging_is_a_503() -> None:
    serving = Serving()
    serving.publisher.fails = StorageUnavailableError("put: SlowDown")
    got = await serving.ask("PUT", body=b"x")
    assert (got.status, got.document()["code"]) == (503, "storage_unavailable")


async def test_waiting_returns_201_with_the_location() -> None:
    serving = Serving()
    serving.publisher.answer = _stored
    got = await serving.ask(
        "PUT", "/v1/projects/acme/objects/a%20b/%C3%BC", body=b"x", headers={"prefer": "wait=7"}
    )
    assert got.status == 201
    assert got.headers["location"] == "/v1/projects/acme/objects/a%20b/%C3%BC"
    assert got.headers["preference-applied"] == "wait=7"
    assert got.document() == {"upload_id": serving.publisher.uploads[0].upload_id}


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
        (["foo, " * 1000 + "wait=5"], None),
        (['"' + r"\"" * 30_000, "wait=5"], None),  # it took 15 seconds
        (['foo="a, wait=5"'], None),
        (['foo="a, wait=5", wait=7'], 7),
        (["await=5"], None),
        (["x-wait=5"], None),
        (["return=minimal"], None),
    ],
)
def test_requested_wait_seconds(values: list[str], wait_s: int | None) -> None:
    headers = HttpHeaders(raw=[(b"prefer", value.encode()) for value in values])
    assert requested_wait_s(headers, 20.0) == wait_s


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_the_wait_is_bounded_for_any_preference(value: str) -> None:
    found = requested_wait_s(HttpHeaders(raw=[(b"prefer", value.encode("latin-1"))]), 20.0)
    assert found is None or 0 <= found <= 20


# What a key holds, and what a project's other bodies hold.


@pytest.mark.parametrize(
    ("own", "code"),
    [
        ({"enc-algo": "Cobblestone-256"}, "already_exists"),
        ({}, "already_exists"),
        ({"enc-algo": "no such algorithm"}, "already_exists"),
        ({"enc-algo": "deleted", "enc-dek-admin": "eA=="}, "deleted_key"),
    ],
)
async def test_a_used_key_is_refused_before_the_body_is_read(
    own: dict[str, str], code: str
) -> None:
    """400 refused bodies of 256 KiB left 400 dead letters; larger ones filled staging."""
    serving = Serving()
    serving.bench.plant(own, b"" if code == "deleted_key" else b"x" * 100)
    connection = Connection()
    got = await serving.ask("PUT", body=[LARGE, None], headers={"expect": ""}, on=connection)
    assert (got.status, got.document()["code"]) == (409, code)
    assert connection.body == [LARGE, None]  # not a byte of it was read
    assert not serving.publisher.uploads
    assert serving.ledger.used_bytes == 0


async def test_a_key_of_an_archived_object_is_in_use() -> None:
    serving = Serving()
    serving.bench.storage.fail_next("read_start", ArchivedError("GLACIER"))
    got = await serving.ask("PUT", body=b"x")
    assert (got.status, got.document()["code"]) == (409, "already_exists")


async def test_a_failed_check_of_the_key_is_a_503() -> None:
    serving = Serving()
    serving.bench.storage.fail_next("read_start", StorageRefusedError("AccessDenied"))
    got = await serving.ask("PUT", body=b"x")
    assert (got.status, got.document()["code"]) == (503, "storage_unavailable")
    assert not serving.publisher.uploads


async def test_bodies_count_until_they_have_left_staging(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Refused bodies of 1 MiB filled staging for 8 days."""
    monkeypatch.setattr(uploads, "_LISTING_MIN_PAUSE_S", 0.0)
    monkeypatch.setattr(uploads, "_PAUSE_PER_LISTING", 0.0)
    mib = 1024 * 1024
    serving = Serving(staging_max_bytes=16 * mib, project_share=0.25, max_bytes=8 * mib)
    other = ring_of(NEW_API_KEY, "other")
    storage = serving.bench.storage
    storage.plant(keyring_s3_key("other"), build_keyring(other, MASTER_KEYS), Headers({}))
    for number in range(4):
        assert (await serving.ask("PUT", f"{PATH}-{number}", body=bytes(mib))).status == 202
        staged = serving.publisher.uploads[-1]
        storage.plant(staging_s3_key("gateway", staged.upload_id), bytes(mib), Headers({}))
    refused = await serving.ask("PUT", f"{PATH}-5", body=bytes(mib))
    assert (refused.status, refused.document()["code"]) == (429, "too_many_requests")
    assert refused.headers["retry-after"] == "1"
    # Neither what is small, nor another project.
    assert (await serving.ask("PUT", f"{PATH}-6", body=b"small")).status == 202
    theirs = await serving.ask("PUT", object_path("other", KEY), key=NEW_API_KEY, body=bytes(mib))
    assert theirs.status == 202
    # A worker stored one: a listing shows it.
    await storage.delete(staging_s3_key("gateway", serving.publisher.uploads[0].upload_id))
    assert (await serving.ask("PUT", f"{PATH}-7", body=bytes(mib))).status == 202


@pytest.mark.parametrize(
    ("error", "used"),
    [(NotDeliveredError("no"), 0), (OutcomeUnknownError("perhaps"), 1), (None, 1)],
)
async def test_only_bodies_that_may_be_in_staging_count(
    error: PublisherError | None, used: int
) -> None:
    serving = Serving()
    serving.publisher.fails = error
    await serving.ask("PUT", body=[LARGE])
    assert serving.ledger.used_bytes == used * 1024 * 1024


async def test_an_incomplete_body_does_not_count() -> None:
    serving = Serving(idle_timeout_s=0.02)
    assert (await serving.ask("PUT", body=[LARGE, None])).status == 408
    assert serving.ledger.used_bytes == 0


# How many are pending.


def _enroll_other(serving: Serving) -> str:
    """Enroll a second project; return the path of an object of it."""
    ring = ring_of(NEW_API_KEY, "other")
    serving.bench.storage.plant(
        keyring_s3_key("other"), build_keyring(ring, MASTER_KEYS), Headers({})
    )
    return object_path("other", KEY)


async def test_one_api_key_cannot_fill_the_broker_while_no_worker_runs() -> None:
    """455 MiB were accepted in ten seconds, and no upload refused."""
    serving = Serving(max_pending=256, max_pending_bytes=10**6, max_bytes=10**7)
    theirs = _enroll_other(serving)
    body = bytes(200 * 1024)
    statuses = [(await serving.ask("PUT", body=body)).status for _ in range(10)]
    assert statuses == [202] * 4 + [429] * 6  # 800 KiB
    refused = await serving.ask("PUT", body=body)
    assert refused.document()["code"] == "too_many_requests"
    assert refused.headers["retry-after"] == "1"
    # Of an unknown length, too, and without reading more than fits.
    assert (await serving.ask("PUT", body=[body[:100_000]] * 2)).status == 429
    # A staged body has its share of staging, and other projects have their own.
    assert (await serving.ask("PUT", body=[LARGE])).status == 202
    assert (await serving.ask("PUT", theirs, key=NEW_API_KEY, body=body)).status == 202
    assert len(serving.publisher.uploads) == 6
    # A worker runs: all that was accepted is stored, and the places are free.
    serving.publisher.answer = _stored
    serving.publisher.telling.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert serving.uploads.pending.in_all == 0
    assert (await serving.ask("PUT", body=body)).status == 202
