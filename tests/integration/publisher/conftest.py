"""Fixtures of the publisher's tests: the worker's side, settings, a network that breaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.publisher.side import Network, WorkerSide, settings_for, worker_side

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn.settings import PublisherSettings


@pytest.fixture
async def worker(vhost_url: str) -> AsyncIterator[WorkerSide]:
    """The worker's side of this test's vhost, topology declared."""
    async with worker_side(vhost_url) as side:
        yield side


@pytest.fixture
def settings(vhost_url: str) -> PublisherSettings:
    """The publisher's settings for this test's vhost."""
    return settings_for(vhost_url)


@pytest.fixture
async def network(vhost_url: str) -> AsyncIterator[tuple[Network, PublisherSettings]]:
    """A network to this test's vhost, and settings of a publisher behind it."""
    relay = Network(vhost_url)
    url = await relay.start()
    yield relay, settings_for(url)
    await relay.close()
