"""No worker starts on a storage that breaks a promise, and says which one (SPEC 10).

The real process, before a proxy that breaks exactly one promise of moto's; served one request
at a time, moto keeps all that are required.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import aio_pika
import pytest

from keyturn.topology import UPLOAD_QUEUE
from keyturn_workers.storage.probe.runner import probe
from tests.support.faulty_s3_proxy import (
    ChecksThenStores,
    CopiesNothing,
    Honest,
    Ignores,
    ListsStale,
    LosesParts,
    ReadsStale,
    RefusesLeases,
    ResumesLate,
    StoresCutPuts,
    broken,
)
from tools.doctor.server_kinds import make_bucket
from tools.harness.deployment import Deployment
from tools.harness.memory_storage import MemoryStorage
from tools.harness.process import worker
from tools.servers import new_bucket

if TYPE_CHECKING:
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

CREATE = "put If-None-Match: *"
CREATE_RACE = "put If-None-Match: *, many at once"
REPLACE = "put If-Match"
REPLACE_RACE = "put If-Match, many at once"
SEEN = "read and list after write"
MULTIPART = "multipart upload"
LISTING = "listing resumes after each key"
CUT = "put that is cut off stores nothing"
COPY = "self-copy replaces metadata"

BROKEN: dict[str, tuple[Honest, set[str]]] = {
    "ignores If-None-Match": (Ignores("if-none-match"), {CREATE, CREATE_RACE}),
    "ignores If-Match": (Ignores("if-match"), {REPLACE, REPLACE_RACE}),
    "lets two creators through": (ChecksThenStores("if-none-match"), {CREATE_RACE}),
    "lets two replacers through": (ChecksThenStores("if-match"), {REPLACE_RACE}),
    "lists what was": (ListsStale(), {SEEN, LISTING}),
    "resumes too late": (ResumesLate(), {LISTING}),
    "stores cut puts": (StoresCutPuts(), {CUT}),
    "loses parts": (LosesParts(), {MULTIPART}),
    "copies nothing": (CopiesNothing(), {COPY}),
    "takes no lease": (RefusesLeases(), {CREATE, COPY}),
}


def _deployment(amqp_url: str, moto: S3Server, url: str) -> Deployment:
    return Deployment(amqp_url, replace(moto, endpoint_url=url), new_bucket(moto))


async def _refusal(deployment: Deployment, role: str = "upload") -> tuple[int, str]:
    """The exit status, and the one line of output."""
    async with worker(deployment.worker_env(), role, ready=False) as running:
        status = await running.ended(timeout_s=60)
        return status, running.lines[-1]


def _named(line: str) -> set[str]:
    found = re.fullmatch(r"keyturn: the bucket lacks: (.*); see `keyturn doctor`.*", line)
    assert found is not None, line
    names = found[1]
    for race in (CREATE_RACE, REPLACE_RACE):
        names = names.replace(race, race.replace(", ", "; "))
    return {name.replace("; ", ", ") for name in names.split(", ")}


@pytest.mark.parametrize("how", BROKEN)
async def test_an_upload_worker_refuses_and_names_the_finding(
    how: str, vhost_url: str, moto: S3Server
) -> None:
    promise, rows = BROKEN[how]
    async with broken(moto.endpoint_url, promise) as url:
        status, line = await _refusal(_deployment(vhost_url, moto, url))
    assert status == 1
    assert _named(line) == rows


async def test_stale_reads_are_refused(vhost_url: str, moto: S3Server) -> None:
    """Other rows look by reading too, and may fail with it."""
    async with broken(moto.endpoint_url, ReadsStale()) as url:
        status, line = await _refusal(_deployment(vhost_url, moto, url))
    assert status == 1
    assert SEEN in _named(line)


async def test_every_required_row_has_its_broken_server() -> None:
    report = await probe(MemoryStorage())
    required = {row.name for row in report.rows if row.needed == "required"}
    assert set().union(*(rows for _, rows in BROKEN.values())) == required


@pytest.mark.parametrize("role", ["control", "sweep", "all"])
async def test_every_role_refuses(role: str, vhost_url: str, moto: S3Server) -> None:
    async with broken(moto.endpoint_url, Ignores("if-match")) as url:
        status, line = await _refusal(_deployment(vhost_url, moto, url), role)
    assert (status, _named(line)) == (1, {REPLACE, REPLACE_RACE})


async def test_a_refused_worker_has_touched_no_queue(vhost_url: str, moto: S3Server) -> None:
    """Nothing may come to wait for a worker that cannot serve it."""
    async with broken(moto.endpoint_url, Ignores("if-match")) as url:
        await _refusal(_deployment(vhost_url, moto, url))
    async with await aio_pika.connect(vhost_url) as connection:
        channel = await connection.channel()
        with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
            await channel.get_queue(UPLOAD_QUEUE, ensure=True)


async def test_a_missing_optional_feature_does_not_stop_a_worker(
    vhost_url: str, moto: S3Server
) -> None:
    """Through the proxy that breaks nothing: moto lacks what SPEC 10 wants, and is served."""
    async with broken(moto.endpoint_url, Honest()) as url:
        deployment = _deployment(vhost_url, moto, url)
        async with worker(deployment.worker_env(), "upload") as running:
            assert await running.terminate() == 0


async def test_the_operator_may_override_the_probe(vhost_url: str, moto: S3Server) -> None:
    """The log names what is missing."""
    async with broken(moto.endpoint_url, Ignores("if-match")) as url:
        deployment = _deployment(vhost_url, moto, url)
        env = deployment.worker_env(ALLOW_UNSAFE_STORAGE="true")
        async with worker(env, "upload") as running:
            assert REPLACE in await running.logged("unsafe storage allowed")
            assert await running.terminate() == 0


async def test_a_versioned_bucket_on_ceph_is_refused(vhost_url: str, ceph: S3Server) -> None:
    """Nothing between: the finding that a real server brings."""
    deployment = Deployment(vhost_url, ceph, make_bucket(ceph, "versioned"))
    status, line = await _refusal(deployment)
    assert status == 1
    assert _named(line) == {CREATE, CREATE_RACE, REPLACE, REPLACE_RACE}
