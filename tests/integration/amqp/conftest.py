"""A network that breaks between the worker's part and the broker, and a broker of FastStream."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.publisher.side import Network

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def network(vhost_url: str) -> AsyncIterator[tuple[Network, str]]:
    """A network to this test's vhost, and the address that leads through it."""
    relay = Network(vhost_url)
    url = await relay.start()
    yield relay, url
    await relay.close()
