"""What one tenant does to a gateway takes nothing from another one (SPEC 9.3, 13), in small.

No request of the other tenant is refused, none waits out of all proportion, and nothing of an
attack stays behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.support.attacks import ATTACKS, Arena
from tools.harness.deployment import Deployment
from tools.harness.http import Client
from tools.harness.process import gateway
from tools.harness.worker_under_test import fresh_amqp_url, run_worker_for
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.attacks import TenantSample
    from tools.servers import S3Server, Servers

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

_SECONDS = 2.0
# Other work on the machine takes its share: the figures are for a quiet one.
_TIMES = 20
_BESIDES_MS = 10_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def arena(broker: Servers, ceph: S3Server) -> AsyncIterator[Arena]:
    deployment = Deployment(await fresh_amqp_url(broker), ceph, new_bucket(ceph))
    async with (
        run_worker_for(deployment) as serving,
        gateway(deployment.gateway_env()) as process,
    ):
        made = Arena(serving, process, Client(process, deployment.api_key))
        await made.prepare()
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def quiet(arena: Arena) -> TenantSample:
    return await arena.measure_tenant(_SECONDS)


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_does_not_affect_another_tenant(
    arena: Arena, quiet: TenantSample, name: str
) -> None:
    found = await arena.measure_attack(name, _SECONDS)
    assert found.under.refused == []
    for kind in quiet.seconds:
        most_ms = _TIMES * quiet.p50_ms(kind) + _BESIDES_MS
        assert found.under.p50_ms(kind) < most_ms, (kind, found)
    assert (found.dead, found.staged) == (0, 0)
    expected = {
        "slow-downloads": "429",
        "rotations": "429",
        "deletes": "429",
        "wrong-keys": "401",
    }
    if name.startswith("refused"):
        assert set(found.attacker) == {"409"}
    elif name in expected:
        assert found.attacker[expected[name]] > 0
