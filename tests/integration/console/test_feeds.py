"""The feeds against a real broker and real workers, with the console's broker user (SPEC 16.1)."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from keyturn.crypto import IntakePublicKey
from keyturn.evidence import parse
from keyturn.messages import encode
from keyturn.publisher import Publisher
from keyturn.settings import NamedIntakeKey, PublisherSettings
from keyturn.topology import SIGNATURE_HEADER
from keyturn_workers.console.feeds import Feeds
from keyturn_workers.console.feeds import feeds as feeds_module
from keyturn_workers.console.model import Model, ProjectQuery, SweepQuery
from tests.unit.keyturn_workers.console.model.messages import accepted
from tools.harness import hostile
from tools.harness import requests as rq
from tools.harness.console import PUBLISHER
from tools.harness.console_history import Publisher as Client
from tools.harness.scene import wait_for_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tools.harness.console_site import ConsoleSite

pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="package"),
]


LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


class Settings(PublisherSettings):
    """What the feeds need of the console's settings."""

    console_history_s: int = 3600
    console_refresh_s: float = 300


def settings_of(site: ConsoleSite) -> Settings:
    deployment = site.deployment
    return Settings(
        deployment=deployment.name,
        amqp_url=SecretStr(site.console_url),
        publisher_name=PUBLISHER,
        publisher_key=deployment.console_key,
        intake_public_key=NamedIntakeKey(
            "main", IntakePublicKey.from_bytes(deployment.intake.public_bytes)
        ),
        event_public_key=(deployment.event_key.verify_key(),),
    )


@asynccontextmanager
async def running(site: ConsoleSite) -> AsyncIterator[tuple[Model, Feeds]]:
    """A model that is fed, while a page is looked at."""
    settings = settings_of(site)
    async with Publisher.open(settings, connect=False) as publisher:
        model = Model(PUBLISHER)
        feeds = Feeds(settings, model, publisher, site.console_url)
        task = asyncio.create_task(feeds.run())
        try:
            with feeds.viewing():
                yield model, feeds
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(model: Model, holds: Callable[[], Any], timeout_s: float = 60) -> None:
    """Wait until the model says so."""
    async with asyncio.timeout(timeout_s):
        async for _ in model.changes.subscribe():
            if holds():
                return


def is_complete(model: Model) -> bool:
    caught_up = all(feed.is_caught_up for feed in model.feeds())
    return (
        caught_up
        and model.projects(ProjectQuery()).is_complete
        and model.sweeps(SweepQuery()).is_complete
        and bool(model.master_keys())
        and model.overview().workers > 0
    )


def seen(model: Model) -> dict[str, Any]:
    """What a restart must not change."""
    projects = model.projects(ProjectQuery()).rows
    sweeps = model.sweeps(SweepQuery()).rows
    return {
        "projects": [(p.project, p.generation, p.key_since, p.last_proof_sweep) for p in projects],
        "sweeps": [(s.sweep_id, s.project, s.status, s.clean, s.counts) for s in sweeps],
        "rejected": model.history.codes(LONG_AGO),
        "keys": [(k.master_key, k.projects, k.safe_to_drop) for k in model.master_keys()],
        "census": model.census().groups,
    }


async def test_a_console_that_restarts_shows_the_same(site: ConsoleSite) -> None:
    history = site.history
    assert history is not None
    async with running(site) as (model, feeds):
        await until(model, lambda: is_complete(model))
        # Other tests of this site may have had objects counted before.
        earlier = model.census().started_at
        feeds.census("ada")
        await until(
            model, lambda: model.census().is_complete and model.census().started_at != earlier
        )
        before = seen(model)
    ids = {sweep_id for sweep_id, *_ in before["sweeps"]}
    assert ids >= {history.rotation_id, history.clean_sweep_id, history.failed_sweep_id}
    assert {project for project, *_ in before["projects"]} >= {"acme", "globex", "initech"}
    assert before["rejected"]["already_exists"] > 0
    assert model.census().inspected >= 80
    async with running(site) as (again, _):
        await until(again, lambda: is_complete(again))
        assert seen(again) == before


async def test_a_restarted_console_names_the_person_whose_audit_record_it_does_not_read(
    site: ConsoleSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds_module, "NEWEST", 1)
    async with Publisher.open(settings_of(site)) as publisher:
        sweep_id = await publisher.sweep("initech", actor="grace")
        await publisher.wait(sweep_id)
        later_id = await publisher.status("master_keys", actor="vera")
        await publisher.wait(later_id)
    async with running(site) as (model, _):
        await until(model, lambda: is_complete(model))
        assert model.audit_of_request(sweep_id) == ()
        view = model.sweep(sweep_id, "initech")
        assert view is not None
        assert (view.row.publisher, view.row.actor) == (PUBLISHER, "grace")


async def test_events_of_all_publishers_count_and_forged_ones_do_not(site: ConsoleSite) -> None:
    deployment, wire = site.deployment, site.wire
    api = Client(deployment, wire)
    await api.publish_and_wait(rq.enroll(deployment, "other"))
    async with running(site) as (model, _):
        await until(model, lambda: is_complete(model))
        before = model.history.total("stored", LONG_AGO)
        for publisher, key in (
            ("api", deployment.publisher_key),
            ("narrow", deployment.narrow_key),
            ("gateway", deployment.gateway_key),
        ):
            body = rq.encode(rq.upload(deployment, "other", f"{publisher}.txt", b"x").document)
            signed = rq.headers(body, key, publisher=publisher)
            await wire.publish("upload.requested", body, signed)
        await until(model, lambda: model.history.total("stored", LONG_AGO) == before + 3)
        forged = encode(accepted(0, "other", generation=9))
        signature = deployment.narrow_key.sign_event(deployment.name, forged)
        await wire.publish("rotation.accepted", forged, {SIGNATURE_HEADER: signature})
        await until(model, lambda: model.feed("events").refused == 1)
        row = model.project("other")
        assert row is not None
        assert row.generation == 1
        assert "unsigned_events" in {item.rule for item in model.attention()}


async def test_while_the_broker_is_away_the_console_shows_what_it_knows(
    site: ConsoleSite,
) -> None:
    async with running(site) as (model, _):
        await until(model, lambda: is_complete(model))
        before = seen(model)
        site.broker.stop()
        await until(model, lambda: not model.feed("events").is_connected)
        assert model.overview().broker_lost_at is not None
        assert "broker_gone" in {item.rule for item in model.attention()}
        assert seen(model) == before
        sweep_id = await Client(site.deployment, site.wire).publish(rq.sweep("initech"))
        await wait_for_end(site.wire, sweep_id, "sweep.completed")
        site.broker.resume()
        await until(model, lambda: (view := model.sweep(sweep_id, "initech")) and view.row.clean)
        # Events may be read again up to a second before the next look at the broker.
        await until(model, lambda: model.overview().broker_lost_at is None)
        await until(model, lambda: model.feed("queues").is_connected)
        row = model.queues()[0]
        assert (row.consumers, row.retrying, row.depth) == (1, 0, 0)
        assert row.dead_depth is not None


async def test_a_console_starts_without_a_broker(site: ConsoleSite) -> None:
    site.broker.stop()
    try:
        async with running(site) as (model, _):
            await until(model, lambda: model.feed("events").problem)
            assert model.overview().broker_lost_at is not None
            site.broker.resume()
            await until(model, lambda: is_complete(model))
    finally:
        site.broker.resume()


async def test_evidence_and_failures_are_read_when_they_are_asked_for(site: ConsoleSite) -> None:
    history = site.history
    assert history is not None
    async with running(site) as (model, feeds):
        await feeds.request_evidence("acme", actor="ada")
        view = model.evidence("acme")
        (file,) = view.files
        assert file.envelope is not None
        origins = parse(file.envelope.encode()).predicate.origins
        assert [each.id for each in origins] == [history.rotation_id]
        await feeds.request_sweep("globex", history.failed_sweep_id, actor="ada")
        await feeds.request_failures("globex", history.failed_sweep_id, actor="ada")
        sweep = model.sweep(history.failed_sweep_id, "globex")
        assert sweep is not None
        assert (len(sweep.failures), sweep.failures_complete) == (len(hostile.OBJECT_KEYS), True)
