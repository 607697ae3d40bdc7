"""What a publisher puts on a real broker, and what it says when it cannot (SPEC 6.2 to 6.5)."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aio_pika
import pytest

from keyturn import topology
from keyturn.crypto import from_base64, user_kek
from keyturn.messages import EnrollRequested, InlineBody, UploadRequested
from keyturn.publisher import (
    BrokerUnavailableError,
    NotDeliveredError,
    OutcomeUnknownError,
    Publisher,
)
from tests.integration.publisher.side import (
    Network,
    WorkerSide,
    opened_body,
    opened_kek,
    settings_for,
    verified,
)

if TYPE_CHECKING:
    from keyturn.settings import PublisherSettings

API_KEY = "kt_" + "k" * 43


def _inline(request: UploadRequested) -> bytes:
    assert isinstance(request.body, InlineBody)
    return opened_body(request, from_base64(request.body.inline))


@pytest.mark.parametrize(
    ("login", "vhost", "reason"),
    [
        ("canary", "", "it refuses the user name or password in KEYTURN_AMQP_URL"),
        ("", "canary", "it refuses the vhost in KEYTURN_AMQP_URL: "),
    ],
)
async def test_a_connection_that_the_broker_refuses_names_the_setting(
    vhost_url: str, login: str, vhost: str, reason: str
) -> None:
    parts = urlsplit(vhost_url)
    changes = {}
    if login:
        changes["netloc"] = f"{parts.username}:{login}@{parts.hostname}:{parts.port}"
    if vhost:
        changes["path"] = f"/{vhost}"
    async with asyncio.timeout(5):
        with pytest.raises(BrokerUnavailableError) as refused:
            async with Publisher.open(settings_for(parts._replace(**changes).geturl())):
                pass
    assert str(refused.value).startswith(f"the broker cannot be reached ({reason}")


async def test_upload_is_sealed_signed_and_carries_what_was_given(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    async with Publisher.open(settings) as publisher:
        upload_id = await publisher.upload(
            "acme",
            "reports/q3.pdf",
            b"numbers",
            content_type="application/pdf",
            metadata={"author": "kim"},
        )
    message = await worker.take()
    request = verified(message)
    assert message.message_id == upload_id == request.upload_id
    assert (request.project, request.key) == ("acme", "reports/q3.pdf")
    assert (request.content_type, request.metadata) == ("application/pdf", {"author": "kim"})
    assert _inline(request) == b"numbers"
    assert b"numbers" not in message.body
    assert abs(datetime.now(UTC) - request.requested_at_instant) < timedelta(minutes=1)


async def test_enrollment_carries_the_kek_and_never_the_api_key(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    async with Publisher.open(settings) as publisher:
        request_id = await publisher.enroll("acme", api_key=API_KEY, plaintext=True, adopt=True)
        await publisher.enroll("beta", api_key=API_KEY)
    message = await worker.take(topology.CONTROL_QUEUE)
    request = verified(message)
    assert isinstance(request, EnrollRequested)
    assert message.message_id == request.request_id == request_id
    assert (request.plaintext, request.adopt) == ("allowed", True)
    kek = opened_kek(request, "enroll", request.sealed_kek.ciphertext)
    assert kek == user_kek(API_KEY, "acme", "pepper").reveal()
    assert API_KEY.encode() not in message.body
    plain = verified(await worker.take(topology.CONTROL_QUEUE))
    assert (plain.plaintext, plain.adopt) == (None, False)


async def test_without_any_worker_nothing_is_delivered_and_the_publisher_goes_on(
    settings: PublisherSettings,
) -> None:
    """A missing exchange closes the channel: other publishes at the time get the same error."""
    async with Publisher.open(settings) as publisher:
        tries = (publisher.upload("acme", f"{n}", b"x") for n in range(10))
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {NotDeliveredError}
        assert "exchange keyturn" in str(outcomes[0])
        async with await aio_pika.connect(settings.amqp_url.get_secret_value()) as connection:
            worker = WorkerSide(await connection.channel())
            await worker.declare()
            await publisher.upload("acme", "a", b"x")
            assert await worker.count() == 1


async def test_unroutable_request_is_not_delivered(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    """The stream of events takes no requests, so `mandatory` is reliable."""
    await worker.delete(topology.UPLOAD_QUEUE)
    async with Publisher.open(settings) as publisher:
        with pytest.raises(NotDeliveredError, match=r"upload\.requested; start one"):
            await publisher.upload("acme", "a", b"x")
        await publisher.enroll("acme", api_key=API_KEY)
    assert await worker.count(topology.CONTROL_QUEUE) == 1


async def test_two_of_one_id_at_once_both_hear_that_they_were_not_delivered(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    """The client library finds a returned message by its id: neither may take the other's."""
    await worker.delete(topology.UPLOAD_QUEUE)
    upload_id = str(uuid.uuid4())
    async with Publisher.open(settings) as publisher:
        tries = (publisher.upload("acme", "a", b"x", upload_id=upload_id) for _ in range(20))
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {NotDeliveredError}


async def test_refused_by_the_broker_leaves_the_outcome_unknown(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    await worker.delete(topology.UPLOAD_QUEUE)
    await worker.full_queue("full", "upload.requested")
    async with Publisher.open(settings) as publisher:
        with pytest.raises(OutcomeUnknownError, match="promise"):
            await publisher.upload("acme", "a", b"x")


async def test_silence_leaves_the_outcome_unknown_and_a_retry_works(
    network: tuple[Network, PublisherSettings], worker: WorkerSide
) -> None:
    relay, settings = network
    async with Publisher.open(settings, publish_timeout_s=1) as publisher:
        await publisher.upload("acme", "a", b"x")
        relay.silence()
        upload_id = str(uuid.uuid4())
        with pytest.raises(OutcomeUnknownError, match="did not confirm within 1 s"):
            await publisher.upload("acme", "b", b"x", upload_id=upload_id)
        relay.restore()
        await publisher.upload("acme", "b", b"x", upload_id=upload_id)
    ids = [verified(await worker.take()).upload_id for _ in range(3)]
    assert ids[1:] == [upload_id] * 2


async def test_lost_connection_leaves_the_outcome_unknown_and_comes_back(
    network: tuple[Network, PublisherSettings], worker: WorkerSide
) -> None:
    relay, settings = network
    async with Publisher.open(settings) as publisher:
        await publisher.upload("acme", "a", b"x")
        relay.silence()
        publishing = asyncio.create_task(publisher.upload("acme", "b", b"x"))
        await relay.waiting.wait()
        relay.cut()
        relay.restore()
        with pytest.raises(OutcomeUnknownError, match="connection was lost"):
            await publishing
        await asyncio.gather(*(publisher.upload("acme", f"c{n}", b"x") for n in range(5)))
    assert await worker.count() == 7


async def test_canceled_publish_still_arrives_once(
    network: tuple[Network, PublisherSettings], worker: WorkerSide
) -> None:
    relay, settings = network
    async with Publisher.open(settings) as publisher:
        relay.silence()
        publishing = asyncio.create_task(publisher.upload("acme", "b", b"x"))
        await relay.waiting.wait()
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        relay.restore()
        await publisher.upload("acme", "c", b"x")
    assert await worker.count() == 2


async def test_unreachable_broker_fails_at_open_without_its_password() -> None:
    settings = settings_for("amqp://guest:sesame@127.0.0.1:1/")
    with pytest.raises(BrokerUnavailableError, match="cannot be reached") as refused:
        async with Publisher.open(settings):
            raise AssertionError("opened")
    error: BaseException | None = refused.value
    while error is not None:
        assert "sesame" not in repr(error)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("silent_s", [0, 2], ids=["for a moment", "longer than a close may take"])
async def test_late_return_is_not_logged_with_its_body(
    network: tuple[Network, PublisherSettings],
    worker: WorkerSide,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    silent_s: float,
) -> None:
    """The client library logs a returned message whole if it no longer knows its publish.

    So a publish that times out is not canceled; no filter on another library's logger.
    """
    monkeypatch.setattr("keyturn.publisher.connection._CLOSE_TIMEOUT_S", 0.5)
    relay, settings = network
    await worker.delete(topology.UPLOAD_QUEUE)
    async with Publisher.open(settings, publish_timeout_s=1) as publisher:
        await publisher.enroll("acme", api_key=API_KEY)
        relay.silence()
        with pytest.raises(OutcomeUnknownError):
            await publisher.upload("acme", "a", b"x")
        await relay.waiting.wait()
        await asyncio.wait(publisher._connection._closing, timeout=silent_s)
        relay.restore()
        await publisher.enroll("acme", api_key=API_KEY)
    assert "Unhandled message" not in caplog.text
    assert "sealed_key" not in caplog.text
