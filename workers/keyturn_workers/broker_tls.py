"""Gateway and console start without a broker, but not with one whose certificate will not do."""

import asyncio
from typing import Final

from keyturn.errors import BrokerTlsError, BrokerUnavailableError
from keyturn.publisher import Publisher

_CHECK_S: Final = 5.0


async def check_broker_tls(publisher: Publisher, timeout_s: float = _CHECK_S) -> None:
    """Connect once. A broker that is away may come back; a wrong certificate stays wrong.

    Raises:
        BrokerTlsError: TLS failed.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await publisher.connect()
    except BrokerTlsError:
        raise
    except (BrokerUnavailableError, TimeoutError):
        return
