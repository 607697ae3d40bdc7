"""A gateway at which API keys only read and upload, with a broker and a worker behind (SPEC 9)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import new_api_key
from keyturn.errors import NotPermittedError, UnauthorizedError
from keyturn.gateway import Client
from tools.harness import requests

if TYPE_CHECKING:
    from typing import Any

    from tests.integration.gateway.scene import Live

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

WORKER_ENV = {"LEASE_S": "1", "KEYRING_CACHE_S": "0.2"}
GATEWAY_ENV = {
    "GATEWAY_ROTATION": "forbidden",
    "GATEWAY_DELETE": "forbidden",
    "KEYRING_CACHE_S": "0",
}


async def _completed(client: Client, rotation_id: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while (state := await client.rotation("acme", rotation_id))["state"] != "completed":
            assert state["state"] in ("accepted", "running"), state
            await asyncio.sleep(0.1)  # the gateway has no event for its callers
    return state


async def test_only_the_operator_deletes(live: Live) -> None:
    live.scene.put("kept", b"plain")
    known = len(live.served.wire.events)
    refused = await live.scene.client.request("acme", "kept", method="DELETE")
    assert (refused.status, refused.code) == (403, "not_permitted")
    wrong = await live.scene.client.request("acme", "kept", method="DELETE", token=new_api_key())
    assert (wrong.status, wrong.code) == (401, "unauthorized")
    assert (await live.scene.client.request("acme", "kept")).body == b"plain"
    event = await live.served.publish_and_wait(requests.delete("acme", "kept"))
    assert event["type"] == "object.deleted"
    assert live.served.wire.events[known] == event  # the gateway published nothing


async def test_only_the_operator_rotates(live: Live) -> None:
    """The customer is refused and keeps its key, and follows what the operator started."""
    deployment, new = live.scene.deployment, new_api_key()
    live.scene.put("a", b"plain")
    known = len(live.served.wire.events)
    async with Client.connect(live.scene.process.url, deployment.api_key) as client:
        with pytest.raises(NotPermittedError, match="ask the operator") as refused:
            await client.rotate("acme", new)
        assert new not in str(refused.value)
        with pytest.raises(UnauthorizedError, match="not the project's current API key"):
            await client.with_api_key(new).rotate("acme", new_api_key())
        assert await client.stat("acme", "a")

        # The next event is that of the operator's rotation: the gateway published none.
        event = await live.served.publish_and_wait(requests.rotation(deployment, "acme", new))
        assert (event["type"], event["generation"]) == ("rotation.accepted", 2)
        assert live.served.wire.events[known] == event
        state = await _completed(client.with_api_key(new), event["rotation_id"])
        assert (state["generation"], state["counts"]["clean"]) == (2, True)
        with pytest.raises(UnauthorizedError):
            await client.rotation("acme", event["rotation_id"])
