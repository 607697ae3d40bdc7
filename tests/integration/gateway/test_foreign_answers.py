"""`Prefer: wait` is answered by what became of the gateway's own request (SPEC 6.7, 9.4, 9.5).

Another publisher may send a request under the same id, and a broker writer may publish old
events again; the test says what the workers would sign of that.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from keyturn import topology
from keyturn.crypto import new_api_key
from keyturn.messages import (
    ProjectEnrolled,
    RequestOrigin,
    RotationRejected,
    UploadRejected,
    UploadStored,
    parse_request,
    with_origin,
)
from keyturn.publisher import Publisher
from tests.integration.publisher.side import worker_side
from tools.harness.deployment import Deployment
from tools.harness.process import gateway, worker

if TYPE_CHECKING:
    from keyturn.messages import Event
    from tests.integration.publisher.side import WorkerSide
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

_AT = "2026-11-24T10:00:00Z"
_WAIT = {"Prefer": "wait=20"}


@pytest.fixture
async def deployment(vhost_url: str, moto: S3Server, moto_bucket: str) -> Deployment:
    """One that has the project acme, and no worker any more."""
    made = Deployment(vhost_url, moto, moto_bucket)
    async with (
        worker(made.worker_env()) as running,
        Publisher.open(made.publisher_settings()) as publisher,
    ):
        request_id = await publisher.enroll("acme", api_key=made.api_key)
        assert isinstance(await publisher.wait(request_id), ProjectEnrolled)
        # Killed, it might not have acknowledged the request yet, and a test would receive it.
        assert await running.terminate() == 0
    return made


async def _publish_event(
    side: WorkerSide, made: Deployment, event: Event, origin: RequestOrigin
) -> None:
    published: Any = with_origin(event, origin)
    await side.publish(published, key=made.event_key, deployment=made.name)


async def test_who_waits_is_answered_by_the_requests_own_outcome(deployment: Deployment) -> None:
    async with (
        gateway(deployment.gateway_env()) as running,
        worker_side(deployment.amqp_url) as side,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {deployment.api_key}"}) as http,
    ):
        url = f"{running.url}/v1/projects/acme"
        put = asyncio.create_task(http.put(f"{url}/objects/a", data=b"x", headers=_WAIT))
        message = await side.next(topology.UPLOAD_QUEUE)
        upload: Any = parse_request(message.body)
        fields: Any = {"upload_id": upload.upload_id, "project": "acme", "at": _AT}
        refused = UploadRejected(**fields, code="already_exists", detail="")
        own = RequestOrigin.of("gateway", message.body)
        await _publish_event(side, deployment, refused, RequestOrigin("api", own.request))
        await _publish_event(side, deployment, refused, RequestOrigin("gateway", "0" * 64))
        await _publish_event(side, deployment, refused.model_copy(update={"project": "bob"}), own)
        await _publish_event(
            side, deployment, UploadStored(**fields, key="a", size=1, generation=1), own
        )
        answer = await put
        assert (answer.status, (await answer.json())["upload_id"]) == (201, upload.upload_id)

        body = json.dumps({"api_key": new_api_key()})
        post = asyncio.create_task(http.post(f"{url}/rotations", data=body, headers=_WAIT))
        message = await side.next(topology.CONTROL_QUEUE)
        rotation: Any = parse_request(message.body)
        fields = {"rotation_id": rotation.rotation_id, "project": "acme", "at": _AT}
        foreign = RotationRejected(**fields, code="malformed_request", detail="")
        own = RequestOrigin.of("gateway", message.body)
        await _publish_event(side, deployment, foreign, RequestOrigin("api", own.request))
        await _publish_event(side, deployment, foreign, RequestOrigin("gateway", "0" * 64))
        await _publish_event(
            side, deployment, RotationRejected(**fields, code="kek_reused", detail=""), own
        )
        answer = await post
        assert (answer.status, (await answer.json())["code"]) == (409, "kek_reused")
        state = await http.get(f"{url}/rotations/{rotation.rotation_id}")
        assert ((await state.json())["state"], (await state.json())["code"]) == (
            "rejected",
            "kek_reused",
        )
