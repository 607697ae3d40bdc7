"""Metrics of a running worker count its results, without names of projects or keys (SPEC 13)."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import TYPE_CHECKING

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from keyturn.errors import all_errors
from keyturn.topology import PUBLISHER_EVENTS, REQUESTS, queues
from keyturn_workers.process.metrics import OTHER, OUTCOMES, WAITING
from tests.support.scrape import rise, samples
from tools.harness import requests
from tools.harness.canaries import MARKER, Canaries
from tools.harness.worker_under_test import WorkerUnderTest, run_worker
from tools.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.servers import S3Server, Servers

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

PORT = free_port()
SECRET_KEY = "invoices/a-telling-name.pdf"  # an object's key
_BOUNDED = {
    "queue": {queue.name for queue in queues()},
    "type": {*PUBLISHER_EVENTS, *REQUESTS, OTHER},
    "code": {*all_errors(), WAITING, OTHER},
    "outcome": {*OUTCOMES, OTHER},
    "reason": {"age", "bytes"},
    "version": {version("keyturn-workers")},
    "stage": {"admit", "serve", "tell", "look", "open", "store", "settle", "take", "record"},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(broker: Servers, ceph: S3Server) -> AsyncIterator[WorkerUnderTest]:
    settings = {"HEALTH_PORT": str(PORT), "LEASE_S": "2", "KEYRING_CACHE_S": "0.5"}
    async with run_worker(broker, ceph, **settings) as running:
        yield running


async def _scrape() -> tuple[str, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{PORT}/metrics") as answer,
    ):
        assert answer.status == 200
        return answer.headers["Content-Type"], await answer.text()


async def _shown() -> dict[str, float]:
    _, text = await _scrape()
    return samples(text)


async def _rise(before: dict[str, float]) -> dict[str, float]:
    return rise(await _shown(), before)


async def test_an_upload_stored(served: WorkerUnderTest) -> None:
    before = await _shown()
    await served.publish_and_wait(
        requests.upload(served.deployment, "acme", "a", b"x" * 1000).document
    )
    stage = 'keyturn_stage_seconds_count{queue="keyturn.upload",stage="%s"}'
    assert await _rise(before) == {
        'keyturn_messages_consumed_total{queue="keyturn.upload"}': 1,
        'keyturn_queue_wait_seconds_count{queue="keyturn.upload"}': 1,
        'keyturn_requests_served_total{type="upload.stored"}': 1,
        "keyturn_stored_bytes_total": 1000,
        **{stage % name: 1 for name in ("admit", "serve", "open", "store", "settle", "tell")},
    }
    now = await _shown()
    assert now['keyturn_messages_in_flight{queue="keyturn.upload"}'] == 0
    assert now['keyturn_oldest_message_age_seconds{queue="keyturn.upload"}'] == 0
    assert {now[f'keyturn_consuming{{queue="keyturn.{q}"}}'] for q in ("upload", "control")} == {1}


async def test_a_refusal_by_its_code(served: WorkerUnderTest) -> None:
    before = await _shown()
    sent = served.sign(requests.upload(served.deployment, "acme", "b", b"x").document)
    forged = {**sent.headers, "keyturn-publisher": "other"}
    await served.wire.publish(sent.routing_key, sent.body, forged)
    await served.process.logged('"code":"bad_signature"')
    assert await _rise(before) == {
        'keyturn_messages_consumed_total{queue="keyturn.upload"}': 1,
        'keyturn_requests_refused_total{code="bad_signature",queue="keyturn.upload"}': 1,
        'keyturn_stage_seconds_count{queue="keyturn.upload",stage="admit"}': 1,
    }


async def test_a_retry_by_its_code(served: WorkerUnderTest) -> None:
    before = await _shown()
    sent = served.sign(requests.upload(served.deployment, "nobody", "k", b"x").document)
    await served.publish(sent, message_id=sent.request_id)
    await served.process.logged('"code":"unknown_project"')
    risen = await _rise(before)
    assert risen['keyturn_retries_total{code="unknown_project",queue="keyturn.upload"}'] >= 1
    assert not [name for name in risen if "served" in name or "refused" in name]
    await served.enroll("nobody")
    assert (await served.wire.outcome(sent.request_id))["type"] == "upload.stored"


async def test_a_sweep(served: WorkerUnderTest) -> None:
    """Its pages, and what became of the objects."""
    before = await _shown()
    await served.publish_and_wait(
        requests.upload(served.deployment, "acme", "swept", b"x").document
    )
    document = requests.sweep("acme")
    known = len(served.process.lines)
    await served.publish(served.sign(document))
    sweep_id = document["sweep_id"]
    await served.wire.event(
        lambda event: event["type"] == "sweep.completed" and sweep_id in event.values(),
        timeout_s=120,
    )
    # The event may be published while a page attempt still cleans up.
    await served.process.logged("page done", after=known)
    risen = await _rise(before)
    assert risen["keyturn_sweep_pages_total"] >= 1
    assert risen['keyturn_sweep_objects_total{outcome="current"}'] >= 1
    for queue, stage in (("sweep", "take"), ("sweep", "record"), ("plan", "serve")):
        name = f'keyturn_stage_seconds_count{{queue="keyturn.{queue}",stage="{stage}"}}'
        assert risen[name] >= 1


async def test_metrics_have_no_names_of_projects_or_keys(served: WorkerUnderTest) -> None:
    """Served, refused or odd: no project, key, id or secret, and no label of an open set."""
    project = "a-telling-project"
    await served.enroll(project)
    sent = [
        requests.upload(served.deployment, project, SECRET_KEY, MARKER),
        requests.upload(served.deployment, project, SECRET_KEY, MARKER + b"again"),
    ]
    for each in sent:
        await served.publish_and_wait(each.document)
    odd = requests.upload(served.deployment, project, SECRET_KEY, MARKER)
    odd.document["type"] = "a-telling-type"
    body = requests.encode(odd.document)
    headers = requests.headers(body, served.deployment.publisher_key)
    await served.wire.publish("upload.requested", body, headers)
    await served.process.logged('"code":"malformed_request"')
    content_type, text = await _scrape()
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert "telling" not in text
    assert served.deployment.bucket not in text
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}", text)
    assert Canaries.of(served.deployment, project, "acme").found([text]) == []
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("keyturn_"):
                shown = {n: v for n, v in sample.labels.items() if n != "le"}
                assert {n: v for n, v in shown.items() if v not in _BOUNDED[n]} == {}
