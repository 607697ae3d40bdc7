"""`keyturn gateway`: the HTTP gateway (SPEC 9, 14)."""

import uvloop

from workers.logs import configure
from workers.settings import GatewaySettings


def gateway() -> None:
    """Serve objects over HTTP, decrypted while they stream, to holders of API keys."""
    settings = GatewaySettings.read()
    configure(settings.log_format, settings.log_level)
    # uvicorn and Starlette take their time to import; every other command does without.
    from workers.gateway.server import run_gateway  # noqa: PLC0415

    uvloop.run(run_gateway(settings))
