"""`keyturn worker` and `keyturn gateway`: a process that serves (SPEC 6.2, 9, 14)."""

import uvloop

from keyturn_workers.cli.bucket import naming_storage
from keyturn_workers.cli.output import command_group
from keyturn_workers.process.background import run_to_end
from keyturn_workers.process.logging import configure
from keyturn_workers.process.settings import GatewaySettings, WorkerSettings

app = command_group("worker", "Run a worker process.")


def _run(*roles: str) -> None:
    settings = WorkerSettings.read()
    configure(settings.log_format, settings.log_level)
    # FastStream alone takes a second to import, and no other command needs it.
    from keyturn_workers.pipeline.tracing.startup import open_tracing  # noqa: PLC0415
    from keyturn_workers.pipeline.worker.process import run_worker  # noqa: PLC0415

    service = "keyturn-worker" if len(roles) > 1 else f"keyturn-worker-{roles[0]}"
    with naming_storage(settings), open_tracing(settings, service) as tracing:
        uvloop.run(run_to_end(run_worker(settings, frozenset(roles), tracing)))


@app.command("upload")
def upload() -> None:
    """Encrypt and store uploads."""
    _run("upload")


@app.command("control")
def control() -> None:
    """Serve enrollments, rotations, sweeps, deletes and status.

    Also serves recoveries and dead letters.
    """
    _run("control")


@app.command("sweep")
def sweep() -> None:
    """Plan sweeps, rewrap objects, and prove that none was missed."""
    _run("sweep")


@app.command("ingest")
def ingest() -> None:
    """Find new objects in the sources, and request their uploads."""
    _run("ingest")


@app.command("all")
def all_roles() -> None:
    """Run all roles in one process, for small deployments."""
    _run("upload", "control", "sweep", "ingest")


def gateway() -> None:
    """Run the HTTP gateway, which serves objects to holders of API keys."""
    settings = GatewaySettings.read()
    configure(settings.log_format, settings.log_level)
    # uvicorn and Starlette are slow to import, and no other command needs them.
    from keyturn_workers.gateway.server import run_gateway  # noqa: PLC0415
    from keyturn_workers.pipeline.tracing.startup import open_tracing  # noqa: PLC0415

    with open_tracing(settings, "keyturn-gateway") as tracing:
        uvloop.run(run_gateway(settings, tracing))
