"""A process that starts without a broker does not start with a wrong one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from keyturn.errors import BrokerTlsError, BrokerUnavailableError
from keyturn_workers.http_server.server import check_broker_tls

if TYPE_CHECKING:
    from keyturn.publisher import Publisher


class _Broker:
    def __init__(self, outcome: Exception | None, wait_s: float = 0) -> None:
        self._outcome = outcome
        self._wait_s = wait_s

    async def connect(self) -> None:
        await asyncio.sleep(self._wait_s)
        if self._outcome is not None:
            raise self._outcome


async def _check(broker: _Broker, timeout_s: float = 5) -> None:
    await check_broker_tls(cast("Publisher", broker), timeout_s)


async def test_a_broker_that_answers_or_is_away_or_silent_is_no_reason() -> None:
    await _check(_Broker(None))
    await _check(_Broker(BrokerUnavailableError("away")))
    await _check(_Broker(None, wait_s=60), timeout_s=0.01)


async def test_a_wrong_certificate_is_one() -> None:
    with pytest.raises(BrokerTlsError, match="expired"):
        await _check(_Broker(BrokerTlsError("its certificate has expired")))
