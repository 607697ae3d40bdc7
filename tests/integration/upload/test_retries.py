"""Uploads that cannot be served yet wait on the broker and are served later (SPEC 12)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from keyturn.crypto import Secret, kek_id, new_api_key, user_kek
from keyturn.identifiers import keyring_s3_key
from keyturn.messages import RequestOrigin
from keyturn_workers.core.keyring import Generation, Keyring
from tools.harness import requests, stored_objects
from tools.harness.local_keys import build_keyring
from tools.harness.loopback import Proxy, proxy_before
from tools.harness.worker_under_test import QUEUES, WorkerUnderTest, run_worker, staging_s3_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.servers import S3Server, Servers

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def storage(ceph: S3Server) -> AsyncIterator[Proxy]:
    """A proxy between the worker and the storage."""
    async with proxy_before(ceph.endpoint_url) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(broker: Servers, ceph: S3Server, storage: Proxy) -> AsyncIterator[WorkerUnderTest]:
    """A worker that reaches its storage by way of the proxy."""
    async with run_worker(broker, ceph, endpoint_url=storage.url) as running:
        yield running


def put_offs(served: WorkerUnderTest, request_id: str) -> list[tuple[str, int]]:
    """Code and delay in seconds of each retry that the worker scheduled."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in served.process.lines]
    return [
        (row["code"], row["delay_s"])
        for row in rows
        if row["event"] == "retry scheduled" and row["request_id"] == request_id
    ]


async def test_an_unknown_project_is_final_after_three_retries(served: WorkerUnderTest) -> None:
    """Retried after 1, 5 and 9 seconds, then refused; each kind of request at once."""
    known = len(served.wire.events)
    requested = [
        served.sign(document)
        for document in (
            requests.upload(served.deployment, "nobody", "k", b"x").document,
            requests.rotation(served.deployment, "nobody", new_api_key()),
            requests.sweep("nobody"),
            requests.delete("nobody", "k"),
        )
    ]
    for sent in requested:
        await served.publish(sent, message_id=sent.request_id)
    waits = [("unknown_project", delay_s) for delay_s in (1, 5, 9)]
    for sent in requested:
        event = await served.wire.outcome(sent.request_id)
        assert event["code"] == "unknown_project"
        assert put_offs(served, sent.request_id) == waits
        dead = await served.wire.take(f"{QUEUES[sent.routing_key]}.dead")
        assert dead.headers["keyturn-code"] == "unknown_project"
    assert len(served.wire.events) == known + len(requested)
    for prefix in ("nobody/", keyring_s3_key("nobody")):
        assert stored_objects.list_keys(served.deployment, prefix) == []


async def test_a_project_enrolled_meanwhile_is_served(served: WorkerUnderTest) -> None:
    """The enrollment was in another queue: the upload finds the keyring at its next attempt."""
    sent = requests.upload(served.deployment, "late", "k", b"patience")
    await served.publish(served.sign(sent.document), message_id=sent.upload_id)
    await served.process.logged('"code":"unknown_project"')
    await served.enroll("late")
    event = await served.wire.outcome(sent.upload_id)
    assert (event["type"], event["generation"]) == ("upload.stored", 1)
    assert put_offs(served, sent.upload_id)[0] == ("unknown_project", 1)
    assert stored_objects.decrypt(served.deployment, "late", "k", "user") == b"patience"


@pytest.mark.parametrize("staged", [False, True], ids=["inline", "staged"])
async def test_an_upload_waits_while_the_storage_is_unreachable(
    served: WorkerUnderTest, storage: Proxy, *, staged: bool
) -> None:
    """Retried while the storage is unreachable, stored afterwards, published once."""
    known = len(served.wire.events)
    key = f"outage/{staged}"
    sent = requests.upload(served.deployment, "acme", key, b"kept", staged=staged)
    if staged:
        served.stage(sent.upload_id, sent.sealed_body)
    storage.stop()
    try:
        await served.publish(served.sign(sent.document), message_id=sent.upload_id)
        await served.process.logged(f'"request_id":"{sent.upload_id}"')
    finally:
        storage.resume()
    event = await served.wire.outcome(sent.upload_id)
    assert event["type"] == "upload.stored"
    assert put_offs(served, sent.upload_id)[0] == ("storage_unavailable", 1)
    assert stored_objects.decrypt(served.deployment, "acme", key, "admin") == b"kept"
    assert await served.assert_serves_next() == served.wire.events[-1]
    assert [e["type"] for e in served.wire.events[known:]] == ["upload.stored"] * 2
    await served.process.logged(f'"again":true,"upload_id":"{sent.upload_id}"')
    assert not served.object_exists(staging_s3_key(sent.upload_id))


async def test_an_upload_waits_for_an_unknown_master_key(served: WorkerUnderTest) -> None:
    """It waits with a count of its attempts, without an event, and blocks no other upload."""
    known = len(served.wire.events)
    kek, now = user_kek(served.deployment.api_key, "newer"), requests.now()
    current = Generation(1, kek_id(kek), kek, requests.new_id(), now, now)
    ring = Keyring("newer", "m9", current, RequestOrigin("api", "0" * 64), lease_s=15)
    served.put(keyring_s3_key("newer"), build_keyring(ring, {"m9": Secret(bytes(32))}))
    sent = served.sign(requests.upload(served.deployment, "newer", "k", b"x").document)
    await served.publish(sent, message_id=sent.request_id)
    waiting = await served.wire.take("keyturn.upload.retry.5s")
    assert waiting.headers["keyturn-attempt"] == "unknown_master_key:2"
    added = {"keyturn-attempt", "keyturn-not-before", "keyturn-retry-mac"}
    assert set(waiting.headers) == set(sent.headers) | added
    assert (waiting.body, waiting.message_id) == (sent.body, sent.request_id)
    await served.assert_serves_next()
    assert [event["type"] for event in served.wire.events[known:]] == ["upload.stored"]
    assert await served.wire.depth("keyturn.upload.dead") == 0
    assert not served.object_exists("newer/k")
