"""`keyturn gateway`: the HTTP gateway (SPEC 9, 14)."""

import uvloop

from keyturn_workers.settings import GatewaySettings
from keyturn_workers.worker.logging import configure


def gateway() -> None:
    """Serve objects over HTTP, decrypted while they stream, to holders of API keys."""
    settings = GatewaySettings.read()
    configure(settings.log_format, settings.log_level)
    # uvicorn and Starlette take their time to import; every other command does without.
    from keyturn_workers.gateway.server import run_gateway  # noqa: PLC0415

    uvloop.run(run_gateway(settings))
