"""`keyturn gateway`: the HTTP gateway (SPEC 9, 14)."""

import uvloop

from keyturn_workers.settings import GatewaySettings
from keyturn_workers.worker.logging import configure


def gateway() -> None:
    """Run the HTTP gateway, which serves objects to holders of API keys."""
    settings = GatewaySettings.read()
    configure(settings.log_format, settings.log_level)
    # uvicorn and Starlette are slow to import, and no other command needs them.
    from keyturn_workers.gateway.server import run_gateway  # noqa: PLC0415
    from keyturn_workers.tracing import open_tracing  # noqa: PLC0415

    with open_tracing(settings, "keyturn-gateway") as instrumentation:
        uvloop.run(run_gateway(settings, instrumentation))
