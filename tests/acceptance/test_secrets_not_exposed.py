"""Where an attacker of SPEC 13 would look: bucket, broker's disk, logs, metrics, traces, console.

One deployment lives through everything once, on a separate broker: uploads inline and staged, a
refusal, reads through the gateway, links that are given away, a new master key, a new API key, an
upload after that. Then
all that it left is searched for every secret that it ever had, and the keys of before are tried on
every object. A console has watched from the beginning, and all of its pages are read at the end.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio

from keyturn import topology
from keyturn.crypto import (
    SealError,
    admin_kek,
    open_record,
    record_kek,
    unwrap_dek,
    user_kek,
)
from keyturn.identifiers import EVIDENCE_PREFIX, KEYS_PREFIX
from keyturn.publisher.connection import BrokerConnection
from keyturn.publisher.event_stream import follow, last_offset
from tools.harness import requests as rq
from tools.harness import stored_objects
from tools.harness.canaries import Canaries, secrets_of_link
from tools.harness.console import Account, ConsoleDeployment, console_user, write_passwords
from tools.harness.console_client import console_client, crawl
from tools.harness.http import Client, object_target
from tools.harness.otlp_receiver import otlp_receiver
from tools.harness.process import console, gateway
from tools.harness.scene import (
    Scene,
    check_queues_empty,
    enroll_projects,
    master_keys_setting,
    wait_for_end,
    wait_until_drained,
)
from tools.harness.wire import open_wire
from tools.servers import Servers, new_bucket
from tools.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from tools.harness.console_client import Answer, ConsoleClient
    from tools.harness.deployment import Deployment
    from tools.harness.otlp_receiver import Received
    from tools.harness.process import GatewayProcess
    from tools.harness.tenants import Tenant
    from tools.harness.wire import Wire
    from tools.servers import RabbitMQ, S3Server

pytestmark = [
    pytest.mark.servers,
    pytest.mark.asyncio(loop_scope="module"),
]

PROJECT = "searched"
HANDED_OVER = "handed-over"
"""The project whose key is rotated in the console, which shows the new one once."""
PERSON = Account("ada", "operate")
_MISTYPED = "not the password, but close to it"
_STAGED_BYTES = 700_000
_SETTINGS = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.5"}


@dataclass(frozen=True)
class Left:
    """All that one deployment left behind, as an attacker finds it."""

    scene: Scene
    tenant: Tenant
    bucket: dict[str, tuple[bytes, dict[str, str]]]
    disk: dict[Path, bytes]
    letters: list[bytes]
    audit: list[str]
    logs: list[str]
    metrics: list[str]
    upload_ids: list[str]
    console: Seen
    traces: list[bytes]

    def secrets(self, *, sealed_bodies: bool) -> Canaries:
        """Every secret there was; in logs sealed bodies have no place either."""
        found = self.scene.canaries.secrets | self.tenant.secrets()
        return Canaries(
            {
                name: value
                for name, value in found.items()
                if sealed_bodies or not name.startswith("sealed body")
            }
        )


@dataclass(frozen=True)
class Seen:
    """All that the console answered and logged."""

    pages: Mapping[str, Answer]
    answers: list[str]
    logs: list[str]


def _texts(blobs: Iterator[bytes]) -> Iterator[str]:
    return (blob.decode("latin-1") for blob in blobs)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def left(ceph: S3Server, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Left]:
    with Servers("none", environ={}) as servers, otlp_receiver() as received:
        assert servers.rabbitmq is not None
        folder = tmp_path_factory.mktemp("console")
        yield await _lived(servers.rabbitmq, ceph, folder, received)


async def _lived(rabbitmq: RabbitMQ, ceph: S3Server, folder: Path, received: Received) -> Left:
    masters = {"m1": os.urandom(32), "m2": os.urandom(32)}
    deployment = ConsoleDeployment(
        rabbitmq.url,
        ceph,
        new_bucket(ceph),
        master_key=masters["m1"],
        more_master_keys={"m2": masters["m2"]},
    )
    scene = Scene(deployment, PROJECT, environ=received.env())
    tenant, _ = await enroll_projects(scene, [PROJECT, HANDED_OVER])
    port = free_port()
    settings = {
        **_SETTINGS,
        "MASTER_KEYS": master_keys_setting(masters),
        "HEALTH_PORT": str(port),
    }
    async with (
        scene.worker(**settings),
        _console(deployment, rabbitmq, folder, scene.canaries) as watching,
        gateway(
            deployment.gateway_env(KEYRING_CACHE_S="0.5", LOG_LEVEL="debug") | received.env()
        ) as serving,
        open_wire(deployment) as wire,
    ):
        scene.logs.append(serving.lines)
        ids = [await _stored(scene, wire, "inline"), await _stored(scene, wire, "staged")]
        again = await scene.upload(wire, "inline", b"refused")
        assert (await wire.outcome(again.upload_id))["code"] == "already_exists"
        await asyncio.to_thread(tenant.remember, dict(scene.plaintexts))
        links = await _given_away(scene, Client(serving, tenant.api_keys[0]))
        sweep = rq.sweep("*", master_key="m2")
        await scene.publish(wire, sweep)
        await wait_for_end(wire, sweep["sweep_id"], "sweep.completed")
        tenant.masters = masters
        rotation = tenant.rotation(expected_generation=1)
        await scene.publish(wire, rotation)
        await wait_for_end(wire, rotation["rotation_id"], "rotation.completed")
        ids.append(await _stored(scene, wire, "afterwards"))
        await asyncio.to_thread(tenant.remember, {"afterwards": scene.plaintexts["afterwards"]})
        for api_key, status in ((tenant.api_keys[-1], 200), (tenant.api_keys[0], 401)):
            for key in scene.plaintexts:
                answer = await Client(serving, api_key).request(PROJECT, key)
                assert answer.status == status
        assert await _statuses(links) == {401}
        console_seen = await _read_all(watching, scene)
        await wait_until_drained(wire)
        metrics = [await _scraped(at) for at in (port, serving.port)]
        audit = await _audit_trail(rabbitmq)
        disk = await asyncio.to_thread(_disk, rabbitmq)
        dead = topology.dead_letter_name(topology.UPLOAD_QUEUE)
        letter = await wire.take(dead)
        await check_queues_empty(wire, dead)
    return Left(
        scene=scene,
        tenant=tenant,
        bucket=await asyncio.to_thread(_bucket, deployment),
        disk=disk,
        letters=[letter.body, repr(letter.headers).encode()],
        audit=audit,
        logs=[line for log in scene.logs for line in log],
        metrics=metrics,
        upload_ids=ids,
        console=console_seen,
        traces=received.bodies,
    )


@asynccontextmanager
async def _console(
    deployment: ConsoleDeployment, rabbitmq: RabbitMQ, folder: Path, canaries: Canaries
) -> AsyncIterator[GatewayProcess]:
    """A console with its own broker user, at its most talkative."""
    write_passwords(folder / "passwords", [PERSON])
    url = console_user(rabbitmq, rabbitmq.url)
    canaries.secrets |= {
        "console's seed": deployment.console_seed,
        "console's session key": deployment.session_key,
        "console's password at the broker": (urlsplit(url).password or "").encode(),
        "person's password": PERSON.password.encode(),
        "mistyped password": _MISTYPED.encode(),
    }
    env = deployment.console_env(folder / "passwords", amqp_url=url, LOG_LEVEL="debug")
    async with console(env) as running:
        yield running


async def _read_all(running: GatewayProcess, scene: Scene) -> Seen:
    """Sign in, badly and well, and read every kind of page."""
    async with console_client(running.url) as client:
        await client.try_password(PERSON.name, _MISTYPED)
        await client.sign_in(PERSON)
        shown = await _until_shows(client, f"/projects/{PROJECT}", "<dd>2</dd>")
        scene.canaries.secrets["API key that the console showed"] = await _rotated(client)
        pages = await crawl(client)
        await client.get("/healthz")  # logged at `debug` alone
        cookies = {
            f"cookie {cookie.key}": cookie.value.encode()
            for cookie in client.session.cookie_jar
            if cookie.value not in ("", "null")  # ended with the sign-in
        }
    assert cookies
    scene.canaries.secrets |= cookies
    # A page may renew the cookie of the one who asks for it.
    answers = [
        f"{[item for item in each.headers.items() if item[0] != 'Set-Cookie']}{each.text}"
        for each in (*pages.values(), shown)
    ]
    return Seen(pages, answers, running.lines)


async def _rotated(client: ConsoleClient) -> bytes:
    """Rotate a project's key in the console; returns the key that a page showed once."""
    path = f"/projects/{HANDED_OVER}/rotate"
    await _until_shows(client, f"/projects/{HANDED_OVER}", "Rotate key")
    page = await client.submit(await client.get(path), "/rotate/key")
    found = re.search(r'id="api-key"[^>]*>([^<]+)<', page.text)
    assert found is not None
    sent = await client.submit(page, "/rotate", saved="yes", typed=HANDED_OVER)
    await _until_shows(client, sent.path, "is at generation 2")
    return found[1].encode()


async def _until_shows(client: ConsoleClient, path: str, text: str) -> Answer:
    """The page, once the console has learned of this."""
    async with asyncio.timeout(60):
        while True:
            answer = await client.get(path)
            if answer.status == 200 and text in answer.text:
                return answer
            await asyncio.sleep(0.3)


async def _stored(scene: Scene, wire: Wire, key: str) -> str:
    staged = key == "staged"
    body = os.urandom(_STAGED_BYTES if staged else 3000)
    made = await scene.upload(wire, key, body, staged=staged)
    assert (await wire.outcome(made.upload_id))["type"] == "upload.stored"
    return made.upload_id


async def _given_away(scene: Scene, client: Client) -> list[str]:
    """Links to each object, and to one that there is not, used well and badly."""
    links = []
    for key in (*scene.plaintexts, "missing"):
        target = f"{object_target(PROJECT, key)}/links"
        answer = await client.send("POST", target, body=b"{}")
        made = json.loads(answer.body)["url"]
        links.append(made.replace("http://gateway", client.process.url, 1))
        scene.canaries.secrets |= secrets_of_link(f"a link to {key}", links[-1])
    stored = f"{object_target(PROJECT, 'inline')}/links"
    answer = await client.send("POST", stored, body=b'{"kind": "ciphertext"}')
    presigned = json.loads(answer.body)["url"]
    scene.canaries.secrets |= secrets_of_link("a link to a ciphertext", presigned)
    assert await _statuses([*links, presigned]) == {200, 404}
    assert await _statuses([f"{link}&inline=1" for link in links]) == {401}
    return links


async def _statuses(urls: list[str]) -> set[int]:
    found = set()
    async with aiohttp.ClientSession() as session:
        for url in urls:
            async with session.get(url) as answer:
                found.add(answer.status)
                await answer.read()
    return found


async def _scraped(port: int) -> str:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/metrics") as answer,
    ):
        return await answer.text()


async def _audit_trail(rabbitmq: RabbitMQ) -> list[str]:
    """All records, as a reader of the stream finds them."""
    connection = BrokerConnection(rabbitmq.url, publish_timeout_s=30)
    last = await last_offset(connection, topology.AUDIT_STREAM)
    records = []
    async with aclosing(follow(connection, "first", topology.AUDIT_STREAM)) as stream:
        async for record in stream:
            records.append(record.body.decode())
            if record.offset == last:
                break
    await connection.close()
    return records


def _disk(rabbitmq: RabbitMQ) -> dict[Path, bytes]:
    """The node's data and its log; its configuration and its cookie are not what it took."""
    found = {}
    for part in ("data", "log"):
        for path in (rabbitmq._folder / part).rglob("*"):
            with suppress(FileNotFoundError):  # it was rolled over meanwhile
                if path.is_file():
                    found[path] = path.read_bytes()
    return found


def _bucket(deployment: Deployment) -> dict[str, tuple[bytes, dict[str, str]]]:
    client = stored_objects.s3_client(deployment)
    found = {}
    for key in stored_objects.list_keys(deployment):
        answer = client.get_object(Bucket=deployment.bucket, Key=key)
        found[key] = (answer["Body"].read(), answer["Metadata"])
    return found


async def test_the_bucket_shows_no_plaintext_and_no_key(left: Left) -> None:
    """Objects with their metadata, keyrings, the records of sweeps."""
    assert {f"{PROJECT}/{key}" for key in left.scene.plaintexts} <= set(left.bucket)
    assert any(key.startswith(".keyturn/keyrings/") for key in left.bucket)
    found = left.secrets(sealed_bodies=False).found(
        text
        for body, metadata in left.bucket.values()
        for text in (body.decode("latin-1"), json.dumps(metadata))
    )
    assert found == []


async def test_the_brokers_disk_and_dead_letters_show_no_plaintext_and_no_key(left: Left) -> None:
    """The search sees what passed: each request's id, and the sealed body that was put inline."""
    disk = list(_texts(iter(left.disk.values())))
    for upload_id in left.upload_ids:
        assert any(upload_id in text for text in disk)
    assert "sealed body of inline" in Canaries(left.scene.canaries.secrets).found(disk)
    secrets = left.secrets(sealed_bodies=False)
    # The broker knows its own password, and logs it nowhere.
    password = secrets.secrets.pop("broker's password")
    logged = {path: data for path, data in left.disk.items() if "log" in path.parts}
    assert Canaries({"password": password}).found(_texts(iter(logged.values()))) == []
    assert secrets.found(disk) == []
    assert secrets.found(_texts(iter(left.letters))) == []


async def test_the_audit_trail_shows_no_secret(left: Left) -> None:
    """It says what was done, by whom; records are on the disk and in logs, searched too."""
    records = [json.loads(text) for text in left.audit]
    done = [record for record in records if record["request_type"] != "status.requested"]
    assert [(record["request_type"], record["actor"]) for record in done] == [
        ("enroll.requested", "api"),
        ("enroll.requested", "api"),
        ("sweep.requested", "api"),
        ("rotation.requested", "api"),
        ("rotation.requested", PERSON.name),
    ]
    assert left.secrets(sealed_bodies=True).found(left.audit) == []
    disk = list(_texts(iter(left.disk.values())))
    for record in records:
        assert any(record["audit_id"] in text for text in disk)
        assert any(record["audit_id"] in line for line in left.logs)


async def test_logs_and_metrics_show_no_secret_and_no_body(left: Left) -> None:
    """Workers and gateway at their most talkative; ids and codes do show."""
    assert any(left.upload_ids[0] in line for line in left.logs)
    assert all("keyturn_" in text for text in left.metrics)
    secrets = left.secrets(sealed_bodies=True)
    assert secrets.found(left.logs) == []
    assert secrets.found(left.metrics) == []
    # Names of projects and objects are labels of no metric.
    assert not any(name in text for text in left.metrics for name in (PROJECT, "afterwards"))


async def test_traces_show_no_secret_and_no_name(left: Left) -> None:
    """In the bytes that a receiver got from workers and gateway; ids of requests do show."""
    texts = list(_texts(iter(left.traces)))
    for upload_id in left.upload_ids:
        assert any(upload_id in text for text in texts)
    assert left.secrets(sealed_bodies=True).found(texts) == []
    names = (PROJECT, HANDED_OVER, "afterwards", "missing", "X-Amz-Signature", "token=")
    assert [name for name in names if any(name in text for text in texts)] == []


async def test_the_consoles_pages_and_logs_show_no_secret(left: Left) -> None:
    """Every kind of page, at the console's most talkative; ids and codes do show."""
    seen = left.console
    assert "/projects/{project}" in seen.pages
    assert any(PROJECT in answer for answer in seen.answers)
    assert any("already_exists" in answer for answer in seen.answers)
    everything = left.secrets(sealed_bodies=True)
    assert everything.found(seen.answers) == []
    assert any(json.loads(line)["level"] == "debug" for line in seen.logs)
    assert everything.found(seen.logs) == []


async def test_the_old_api_keys_kek_opens_no_wrap_after_the_sweep(left: Left) -> None:
    old, new = (user_kek(api_key, PROJECT) for api_key in left.tenant.api_keys)
    assert not list(_opened(left, old, "user"))
    assert not list(_opened(left, old, "admin"))
    assert len(list(_opened(left, new, "user"))) == len(left.scene.plaintexts)


async def test_a_master_key_that_was_rotated_out_opens_nothing_new(left: Left) -> None:
    """Nor does the API key's KEK that it gave away while it was good: that was rotated since."""
    old, new = left.tenant.masters.values()
    assert not list(_opened(left, admin_kek(old, PROJECT), "admin"))
    assert not list(_opened(left, admin_kek(old, PROJECT), "user"))
    assert len(list(_opened(left, admin_kek(new, PROJECT), "admin"))) == len(left.scene.plaintexts)
    # Evidence is signed, not sealed; known texts are under the key of their own id each.
    open_to_all = (EVIDENCE_PREFIX, KEYS_PREFIX)
    own = (key for key in left.bucket if key.startswith(".keyturn/"))
    records = [key for key in own if not key.startswith(open_to_all)]
    assert records
    for key in records:
        record = json.loads(left.bucket[key][0])
        project, sealed = record["project"], base64.b64decode(record["sealed"], validate=True)
        assert record["master_key"] == "m2"
        assert open_record(record_kek(new, project), key, sealed)
        with pytest.raises(SealError):
            open_record(record_kek(old, project), key, sealed)


async def test_every_object_opens_with_the_current_keys(left: Left) -> None:
    """Otherwise the two tests above would accept a bucket that no key opens."""
    left.tenant.check(generation=2)


def _opened(left: Left, kek: Any, role: Any) -> Iterator[str]:
    """The objects of which this KEK opens that wrap, whatever generation is tried."""
    for s3_key, (_, metadata) in left.bucket.items():
        project, _, key = s3_key.partition("/")
        if project != PROJECT:
            continue
        wrap = base64.b64decode(metadata[f"enc-dek-{role}"], validate=True)
        for generation in (1, 2):
            with suppress(SealError):
                unwrap_dek(
                    kek,
                    role,
                    algorithm=metadata["enc-algo"],
                    project=PROJECT,
                    object_key=key,
                    generation=generation,
                    wrap=wrap,
                )
                yield s3_key
