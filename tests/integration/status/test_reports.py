"""What a console learns from the workers: every view, and each worker's own reports (SPEC 16.1)."""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from keyturn.evidence import verify_chain
from keyturn.messages import StatusFilter, StatusReported, SweepCompleted
from keyturn.publisher import Publisher
from keyturn.settings import NamedIntakeKey, PublisherSettings
from keyturn.topology import CONTROL_QUEUE, DEAD_QUEUES, UPLOAD_QUEUE, dead_letter_name, retry_name
from tools.harness import console_projects, stored_objects
from tools.harness import requests as rq
from tools.harness.console import PUBLISHER, ConsoleDeployment
from tools.harness.loopback import proxy_before
from tools.harness.process import worker
from tools.harness.wire import open_wire
from tools.harness.worker_under_test import WorkerUnderTest, fresh_amqp_url
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn.messages import StatusView
    from tools.harness.loopback import Proxy
    from tools.servers import S3Server, Servers

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

# More than a storage lists at once.
_PROJECTS = console_projects.names(1100)
_SETTINGS = {"LEASE_S": "1", "KEYRING_CACHE_S": "0.3", "WORKER_REPORT_INTERVAL_S": "1"}


@dataclass
class Site:
    """A worker whose storage can be stopped, and a publisher that asks it like a console."""

    running: WorkerUnderTest
    storage: Proxy
    publisher: Publisher

    async def report(self, view: StatusView, project: str = "*", **more: Any) -> StatusReported:
        request_id = await self.publisher.status(view, project, **more)
        event = await self.publisher.wait(request_id, timeout_s=60)
        assert isinstance(event, StatusReported)
        return event

    async def complete(self, view: StatusView, project: str = "*", **more: Any) -> StatusReported:
        """The first page, once all that it is of has been read."""
        while True:
            report = await self.report(view, project, **{"page": 1} | more)
            assert report.code is None, report.detail
            if report.is_complete:
                return report

    async def census(self, project: str = "*") -> list[StatusReported]:
        pages = [await self.report("objects", project, page=1, limit=1000)]
        while pages[-1].next is not None:
            after = pages[-1].next
            pages.append(await self.report("objects", project, page=1, limit=1000, after=after))
        return pages

    async def sweep(self, project: str) -> SweepCompleted:
        sweep_id = await self.publisher.sweep(project)
        event = await self.publisher.wait_completed(sweep_id, timeout_s=60)
        assert isinstance(event, SweepCompleted)
        return event


def _settings(deployment: ConsoleDeployment) -> PublisherSettings:
    return PublisherSettings(
        deployment=deployment.name,
        amqp_url=deployment.amqp_url,
        publisher_name=PUBLISHER,
        publisher_key=deployment.console_key,
        intake_public_key=NamedIntakeKey("main", deployment.intake.public_key),
        event_public_key=deployment.event_key.verify_key(),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(broker: Servers, ceph: S3Server) -> AsyncIterator[Site]:
    deployment = ConsoleDeployment(await fresh_amqp_url(broker), ceph, new_bucket(ceph))
    await console_projects.put_keyrings(deployment, _PROJECTS)
    stored_objects.s3_client(deployment).put_object(
        Bucket=deployment.bucket, Key=".keyturn/keyrings/forged.json", Body=b"{}"
    )
    async with (
        proxy_before(ceph.endpoint_url) as storage,
        worker(deployment.worker_env(S3_ENDPOINT_URL=storage.url, **_SETTINGS)) as process,
        open_wire(deployment) as wire,
        Publisher.open(_settings(deployment)) as publisher,
    ):
        running = WorkerUnderTest(deployment, process, wire)
        await running.enroll("acme")
        yield Site(running, storage, publisher)


async def test_many_projects_are_filtered_ordered_and_paged(site: Site) -> None:
    names = sorted([*_PROJECTS, "acme", "forged"])
    first = await site.complete("projects", limit=500)
    pages = [first, *[await site.report("projects", limit=500, page=page) for page in (2, 3)]]
    rows = [row for page in pages for row in page.projects or ()]
    assert [row.project for row in rows] == names
    assert {row.project: row.code for row in rows if row.code} == {"forged": "corrupt_object"}
    assert (first.total, first.of_all) == (len(names), len(names))
    last = await site.report("projects", limit=2, page=1, order="-project")
    assert [row.project for row in last.projects or ()] == names[:-3:-1]
    wanted = StatusFilter(state="attention", text="forge")
    broken = await site.report("projects", page=1, filter=wanted)
    assert [row.project for row in broken.projects or ()] == ["forged"]
    assert (broken.total, broken.of_all) == (1, len(names))


async def test_a_sweep_its_failures_its_evidence_and_what_depends_on_each_key(site: Site) -> None:
    running, deployment = site.running, site.running.deployment
    for number in range(3):
        upload = rq.upload(deployment, "acme", f"k{number}", b"hello")
        assert (await running.publish_and_wait(upload.document))["type"] == "upload.stored"
    clean = await site.sweep("acme")
    assert clean.clean
    running.put("acme/odd", b"x", {"enc-algo": "ROT13"})
    failed = await site.sweep("acme")
    assert not failed.clean
    page = await site.complete("sweeps")
    ends = {row.sweep_id: (row.project, row.status, row.clean) for row in page.sweeps or ()}
    assert ends[clean.sweep_id] == ("acme", "done", True)
    assert ends[failed.sweep_id] == ("acme", "done", False)
    page = await site.complete("sweep", "acme", sweep_id=failed.sweep_id)
    assert [row.counts.failed for row in page.sweeps or () if row.counts] == [1]
    page = await site.complete("failures", "acme", sweep_id=failed.sweep_id)
    assert [(row.key, row.code) for row in page.failures or ()] == [("odd", "unknown_algorithm")]
    page = await site.complete("evidence", "acme")
    (proof,) = page.evidence_files or ()
    assert (proof.digest, proof.code) == (clean.evidence, None)
    keys = [deployment.event_key.verify_key()]
    assert proof.envelope is not None
    (file,) = verify_chain([proof.envelope.encode()], keys, project="acme", newest=clean.evidence)
    # Its name has the id of the round. Inside are the ids of the requests that it answers.
    assert proof.sweep_id == file.proof.sweep_id
    assert [each.id for each in file.proof.origins] == [clean.sweep_id]
    (page,) = await site.census("acme")
    groups = {(row.kind, row.master_key, row.code): row.count for row in page.objects or ()}
    assert groups == {("encrypted", "m1", None): 3, ("unreadable", None, "unknown_algorithm"): 1}
    page = await site.complete("master_keys")
    rows = [(row.master_key, row.provider, row.active, row.code) for row in page.master_keys or ()]
    assert rows == [("m1", "local", True, None)]


async def test_a_census_counts_every_keyring_over_its_pages(site: Site) -> None:
    kinds: Counter[str] = Counter()
    for page in await site.census():
        for row in page.objects or ():
            kinds[row.kind] += row.count
    assert kinds["keyring"] == len(_PROJECTS) + 1
    assert kinds["unreadable"] >= 1


async def test_a_storage_that_is_away_is_a_code_and_neither_a_retry_nor_a_dead_letter(
    site: Site,
) -> None:
    site.storage.stop()
    try:
        reports = [await site.report(view, "acme", page=1) for view in ("projects", "objects")]
        attention = await site.report("attention", page=1)
    finally:
        site.storage.resume()
    assert [report.code for report in reports] == ["storage_unavailable"] * 2
    assert attention.code is None
    assert (await site.report("projects", "acme", page=1)).code is None
    wire = site.running.wire
    queues = (CONTROL_QUEUE, dead_letter_name(CONTROL_QUEUE), retry_name(CONTROL_QUEUE, 1))
    assert [await wire.depth(queue) for queue in queues] == [0, 0, 0]


async def test_workers_queues_totals_and_the_audit_trail_are_views_too(site: Site) -> None:
    sweep = await site.sweep("acme")
    workers = await site.complete("workers")
    assert [row.is_missing for row in workers.workers or ()] == [False]
    queues = await site.report("queues", page=1)
    depths = {row.queue: (row.depth, row.consumers, row.dead) for row in queues.queues or ()}
    assert depths[UPLOAD_QUEUE] == (0, 1, 0)
    totals = await site.complete("totals")
    assert len(totals.totals or ()) == 60
    assert sum(row.control for row in totals.totals or ()) > 0
    served = StatusFilter(request_id=sweep.sweep_id)
    while not (await site.complete("audit", filter=served)).audit_records:
        pass  # each question waits a moment: the record comes after the effect
    dead = await site.complete("dead_letters")
    assert dead.dead_letters == ()
    assert len(dead.dead_queues or ()) == len(DEAD_QUEUES)
    attention = await site.report("attention", page=1)
    items = {row.rule: row.severity for row in attention.attention or ()}
    assert items["keyrings_broken"] == "act"
    assert "sources_unread" not in items


async def test_a_worker_reports_what_it_does_and_when_it_ends(site: Site) -> None:
    await site.report("projects", "acme", page=1)
    async with (
        worker(site.running.deployment.worker_env(**_SETTINGS), "upload") as other,
        aclosing(site.publisher.worker_reports()) as reports,
    ):
        ended, control, served = None, None, 0
        async for report in reports:
            queues = {queue.queue: queue for queue in report.queues}
            if report.roles == ("upload",):
                assert (report.lease_s, report.interval_s) == (1, 1)
                if report.is_stopping:
                    ended = report
                elif other.process.returncode is None and ended is None:
                    assert list(queues) == [UPLOAD_QUEUE]
                    assert queues[UPLOAD_QUEUE].is_consuming
                    other.process.terminate()
            else:
                control, served = report, queues[CONTROL_QUEUE].served
            if ended is not None and served:
                break
        assert await other.ended() == 0
    assert control is not None
    assert (control.roles, control.master_keys) == (
        ("control", "ingest", "sweep", "upload"),
        ("m1",),
    )
    newest = {queue.queue: queue for queue in control.queues}[CONTROL_QUEUE]
    assert newest.waited_s is not None
    assert 0 <= newest.waited_s < 60
    assert ended is not None
    assert ended.worker_id != control.worker_id
