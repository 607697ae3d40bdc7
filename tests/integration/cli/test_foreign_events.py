"""Another publisher's request under one's id ends none of one's own waits (SPEC 6.7)."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from keyturn.crypto import SigningKey, VerifyKey, new_api_key, to_base64
from keyturn.messages import ProjectEnrolled, SweepCompleted, UploadRejected, UploadStored
from keyturn.publisher import Publisher
from keyturn.publisher.requests import new_id
from keyturn.settings import NamedIntakeKey, PublisherSettings
from keyturn.topology import EXCHANGE, publisher_stream
from tests.integration.cli.conftest import cli_for, document
from tests.integration.cli.test_watch import started
from tools.harness.bucket import Bucket
from tools.harness.deployment import Deployment
from tools.harness.process import worker
from tools.harness.wire import open_wire
from tools.harness.worker_under_test import fresh_amqp_url
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.cli.conftest import Cli
    from tools.harness.wire import Wire
    from tools.servers import S3Server, Servers

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

_MALLORY = SigningKey.from_seed(b"m" * 32)
_FAST = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.2"}


def _worker_env(cli: Cli) -> dict[str, str]:
    """A worker for whom `mallory` may sweep bob, and nothing else."""
    env = cli.deployment.worker_env(**_FAST)
    publishers = json.loads(env["KEYTURN_PUBLISHERS"])
    keys = [to_base64(_MALLORY.public_bytes)]
    publishers["mallory"] = {"keys": keys, "may": ["sweep.requested"], "projects": ["bob"]}
    return env | {"KEYTURN_PUBLISHERS": json.dumps(publishers)}


def _settings(cli: Cli, name: str, key: SigningKey) -> PublisherSettings:
    deployment = cli.deployment
    return PublisherSettings(
        deployment=deployment.name,
        amqp_url=deployment.amqp_url,
        publisher_name=name,
        publisher_key=key,
        intake_public_key=NamedIntakeKey("main", deployment.intake.public_key),
        event_public_key=VerifyKey.from_bytes(deployment.event_key.public_bytes),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cli(broker: Servers, moto: S3Server) -> AsyncIterator[Cli]:
    """A deployment with a worker and three projects; one test uses each for its own requests."""
    served = cli_for(Deployment(await fresh_amqp_url(broker), moto, new_bucket(moto)))
    settings = _settings(served, "api", served.deployment.publisher_key)
    async with worker(_worker_env(served)):
        async with Publisher.open(settings) as publisher:
            for project in ("acme", "bob", "carol"):
                request_id = await publisher.enroll(project, api_key=new_api_key())
                assert isinstance(await publisher.wait(request_id), ProjectEnrolled)
        yield served


@asynccontextmanager
async def _all_sweeps_in_own_stream(wire: Wire) -> AsyncIterator[None]:
    own = await wire.channel.get_queue(publisher_stream("api"), ensure=False)
    await own.bind(EXCHANGE, "sweep.#")
    try:
        yield
    finally:
        await own.unbind(EXCHANGE, "sweep.#")


async def test_a_sweep_of_another_publisher_with_the_same_id_does_not_end_a_rotation(
    cli: Cli,
) -> None:
    """Matching of events guards it, even of a stream that holds all events."""
    bucket = Bucket(cli.deployment)
    async with (
        open_wire(cli.deployment) as wire,
        Publisher.open(_settings(cli, "mallory", _MALLORY)) as mallory,
        _all_sweeps_in_own_stream(wire),
    ):
        # No sweep of acme can repair this object, so its rotation is not clean.
        bucket.put("acme/unencrypted", b"x", {})
        env = {"NEW_API_KEY": new_api_key()}
        async with started(cli, "rotate", "acme", "--watch", "--json", **env) as process:
            accepted = await wire.event(lambda event: event["type"] == "rotation.accepted")
            rotation_id = accepted["rotation_id"]
            await mallory.sweep("bob", sweep_id=rotation_id)
            foreign = await mallory.wait_completed(rotation_id, timeout_s=60)
            assert isinstance(foreign, SweepCompleted)
            assert foreign.clean
            out, err = await process.communicate()
        ends = [e["type"] for e in wire.events if e["type"].endswith(".completed")]
        assert ends == ["sweep.completed", "rotation.completed"]
        result = json.loads(out)
        assert (process.returncode, result["status"]) == (1, "completed"), err
        event = result["event"]
        assert (event["type"], event["project"], event["clean"]) == (
            "rotation.completed",
            "acme",
            False,
        )
        watched = await cli.arun("status", rotation_id, "--watch")
        assert watched.exit_code == 1
        assert (
            "several projects have a sweep with this id; add --project: acme, bob" in watched.stderr
        )
        mine = await cli.arun("status", rotation_id, "--project", "acme", "--json")
        assert document(mine)["clean"] is False


async def test_a_sweep_requested_by_two_publishers_ends_for_both(cli: Cli) -> None:
    """Its record keeps the publishers: each gets the end, even one that was restarted."""
    since, sweep_id = datetime.now(UTC), new_id()
    api = _settings(cli, "api", cli.deployment.publisher_key)
    of: Any = {"project": "bob", "request_type": "sweep.requested"}
    async with (
        Publisher.open(api) as first,
        Publisher.open(_settings(cli, "mallory", _MALLORY)) as second,
    ):
        for publisher in (first, second):
            await publisher.sweep("bob", sweep_id=sweep_id)
        async with Publisher.open(api) as restarted:
            ends = await asyncio.gather(
                first.wait_completed(sweep_id, timeout_s=90),
                second.wait_completed(sweep_id, timeout_s=90),
                restarted.wait_completed(sweep_id, timeout_s=90, since=since, **of),
            )
    assert [(end.type, end.publisher) for end in ends] == [
        ("sweep.completed", name) for name in ("api", "mallory", "api")
    ]


async def test_the_rejection_of_a_first_attempt_does_not_answer_a_retry_by_a_new_process(
    cli: Cli,
) -> None:
    settings = _settings(cli, "api", cli.deployment.publisher_key)
    bucket, upload_id = Bucket(cli.deployment), new_id()

    async def once(publisher: Publisher) -> Any:
        await publisher.upload("carol", "a", b"x", upload_id=upload_id)
        return await publisher.wait(upload_id, timeout_s=60)

    bucket.put("carol/a", b"of another program", {})
    async with Publisher.open(settings) as first:
        refused = await once(first)
        assert isinstance(refused, UploadRejected)
        assert refused.code == "already_exists"
    bucket.delete("carol/a")
    # The new process has no memory; the rejection is on the stream, within the time it reads.
    async with Publisher.open(settings) as second:
        assert isinstance(await once(second), UploadStored)
