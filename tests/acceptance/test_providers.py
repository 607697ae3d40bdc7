"""The whole system on master keys that are held elsewhere (SPEC 2.2): moving and importing."""

from __future__ import annotations

import asyncio
import itertools
import json
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import to_base64
from tests.acceptance.providers import (
    NAMES,
    Provider,
    assert_gateway_opens,
    env_of,
    keyturn,
    on,
    plaintext,
    provider,
    served,
    upload_to,
    worker_settings,
)
from tools.harness.deployment import Deployment
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tools.servers import S3Server

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def deployment(vhost_url: str, ceph: S3Server) -> Deployment:
    return Deployment(vhost_url, ceph, new_bucket(ceph))


@pytest.fixture(scope="module")
def providers() -> Iterator[dict[str, Provider]]:
    """One of each that can be had here."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(provider(name)) for name in NAMES}


async def test_from_a_local_key_through_every_provider(
    deployment: Deployment, providers: dict[str, Provider]
) -> None:
    """Each leg moves everything by a sweep of `*`, and then drops the key before it."""
    local = to_base64(deployment.master_key)
    legs = [("m1", local), *((f"in-{name}", providers[name].uri) for name in NAMES)]
    running = list(providers.values())
    async with served(deployment, {"m1": local}, "m1", running) as scene:
        projects = [await scene.enrolled(f"p{number}") for number in range(2)]
        await asyncio.gather(*(upload_to(each, "first") for each in projects))
        await asyncio.gather(*(upload_to(each, "second") for each in projects))
    for (before, before_uri), (name, uri) in itertools.pairwise(legs):
        both = {before: before_uri, name: uri}
        async with served(deployment, both, name, running) as scene:
            projects = [on(scene, project) for project in projects]
            end = await scene.swept("*", master_key=name)
            assert end["clean"], end
        async with served(deployment, {name: uri}, name, running) as scene:
            projects = [on(scene, project) for project in projects]
            fresh = await scene.enrolled(f"born-{name}")
            await asyncio.gather(upload_to(fresh, "first"), upload_to(fresh, "second"))
            projects.append(fresh)
        await assert_gateway_opens(deployment, {name: uri}, running, projects)
        worker_env = deployment.worker_env(**worker_settings({name: uri}, name))
        env = deployment.publisher_env() | worker_env | env_of(running)
        status, output = await keyturn(env, "status", "--json")
        assert status == 0, output
        report = json.loads(output)
        assert {row["master_key"] for row in report["keyrings"]} == {name}
        assert {row["master_key"] for row in report["objects"]} == {name}


async def test_an_imported_key_keeps_its_id_and_nothing_is_rewrapped(
    providers: dict[str, Provider], vhosts: Callable[[], str], ceph: S3Server
) -> None:
    async with asyncio.TaskGroup() as group:
        for name, used in providers.items():
            deployment = Deployment(vhosts(), ceph, new_bucket(ceph))
            group.create_task(_import_and_rotate(deployment, used), name=name)


async def _import_and_rotate(deployment: Deployment, used: Provider) -> None:
    local = {"m1": to_base64(deployment.master_key)}
    async with served(deployment, local, "m1", [used]) as scene:
        project = await scene.enrolled("acme")
        await upload_to(project, "first")
        await upload_to(project, "second")
    before = {s3_key: scene.bucket.get(s3_key) for s3_key in scene.bucket.keys("acme/")}
    env = deployment.worker_env(**worker_settings(local, "m1")) | used.env
    status, output = await keyturn(env, "keys", "import", "m1", used.import_uri)
    assert status == 0, output
    assert used.import_uri in output
    assert to_base64(deployment.master_key) not in output
    moved = {"m1": used.import_uri}
    await assert_gateway_opens(deployment, moved, [used], [project])
    after = {s3_key: scene.bucket.get(s3_key) for s3_key in scene.bucket.keys("acme/")}
    assert {s3_key: body for s3_key, (body, _) in after.items()} == {
        s3_key: body for s3_key, (body, _) in before.items()
    }
    assert [answer["Metadata"] for _, answer in after.values()] == [
        answer["Metadata"] for _, answer in before.values()
    ]
    async with served(deployment, moved, "m1", [used]) as scene:
        project = on(scene, project)
        assert (await project.rotated())["clean"]
        project.assert_opens_as({key: plaintext(project, key) for key in ("first", "second")})
