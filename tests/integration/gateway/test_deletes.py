"""Deletes over HTTP, with a broker and a worker behind (SPEC 8.7, 9.3)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.integration.gateway.scene import plain
from tools.harness import stored_objects

if TYPE_CHECKING:
    from tests.integration.gateway.scene import Live
    from tools.harness.http import Response

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

WORKER_ENV = {"LEASE_S": "1", "KEYRING_CACHE_S": "0.2"}
GATEWAY_ENV = {"KEYRING_CACHE_S": "0.5", "GATEWAY_PROJECT_DELETES": "20"}
_WAIT = {"Prefer": "wait=30"}


async def _delete(live: Live, key: str, **headers: str) -> Response:
    return await live.scene.client.request("acme", key, headers, method="DELETE")


async def test_a_deleted_key_is_gone_for_good(live: Live) -> None:
    """204 once the tombstone is final; then 404, a new body is refused, and a delete repeated."""
    client = live.scene.client
    live.scene.put("a/gone", plain(100))
    answer = await _delete(live, "a/gone", **_WAIT)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["preference-applied"] == "wait=30"
    event = live.served.wire.events[-1]
    assert (event["type"], event["key"]) == ("object.deleted", "a/gone")
    got = await client.request("acme", "a/gone")
    assert (got.status, got.code) == (404, "not_found")
    again = await client.request("acme", "a/gone", _WAIT, method="PUT", body=b"x")
    assert (again.status, again.code) == (409, "deleted_key")
    assert (await _delete(live, "a/gone", **_WAIT)).status == 204
    assert stored_objects.list_keys(live.scene.deployment, "acme/a/gone") == ["acme/a/gone"]


async def test_a_delete_that_is_not_waited_for(live: Live) -> None:
    live.scene.put("later", plain(100))
    answer = await _delete(live, "later")
    assert answer.status == 202
    event = await live.served.wire.outcome(json.loads(answer.body)["request_id"])
    assert (event["type"], event["key"], event["publisher"]) == (
        "object.deleted",
        "later",
        "gateway",
    )


async def test_a_wait_that_is_shorter_than_two_leases(live: Live) -> None:
    live.scene.put("soon", plain(100))
    answer = await _delete(live, "soon", Prefer="wait=1")
    assert (answer.status, answer.headers["preference-applied"]) == (202, "wait=1")
    assert (await live.scene.client.request("acme", "soon")).status == 404  # the tombstone is there


async def test_a_key_that_never_had_an_object(live: Live) -> None:
    known = len(live.served.wire.events)
    answer = await _delete(live, "never", **_WAIT)
    assert (answer.status, answer.code) == (404, "not_found")
    assert stored_objects.list_keys(live.scene.deployment, "acme/never") == []
    assert len(live.served.wire.events) == known
