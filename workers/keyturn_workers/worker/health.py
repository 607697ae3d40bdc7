"""`/healthz`, `/readyz` and `/metrics` of a worker, on `HEALTH_PORT` (SPEC 11).

Alive means that the process responds. Ready means that the broker is connected, that every role has
its consumer, and that the bucket responds, all at this moment. Metrics are only of this process,
and need neither broker nor bucket.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from keyturn_workers.errors import AddressError
from keyturn_workers.worker.metrics import Registry

_CHECK_TIMEOUT_S: Final = 5

Check = Callable[[], Awaitable[bool]]


@asynccontextmanager
async def health_server(
    host: str, port: int, checks: dict[str, Check], registry: Registry
) -> AsyncIterator[None]:
    """Serve health and metrics while the block runs; nothing if `port` is 0.

    Raises:
        AddressError: the address is in use or does not exist.
    """
    if port == 0:
        yield
        return
    app = web.Application()
    app.router.add_get("/healthz", _liveness)
    app.router.add_get("/readyz", _readiness(checks))
    app.router.add_get("/metrics", _scrape(registry))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as exc:
            raise AddressError.of(exc, host, port, "KEYTURN_HEALTH") from exc
        yield
    finally:
        await runner.cleanup()


async def _liveness(request: web.Request) -> web.Response:
    del request
    return web.json_response({"status": "alive"})


def _readiness(checks: dict[str, Check]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def ready(request: web.Request) -> web.Response:
        del request
        results = await run_checks(checks)
        status = 200 if all(results.values()) else 503
        return web.json_response({"ready": status == 200, "checks": results}, status=status)  # noqa: PLR2004

    return ready


async def run_checks(checks: Mapping[str, Check]) -> dict[str, bool]:
    """Which of the checks pass now; one that raises or takes too long does not."""
    results = await asyncio.gather(*map(_passes, checks.values()))
    return dict(zip(checks, results, strict=True))


def _scrape(registry: Registry) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def scrape(request: web.Request) -> web.Response:
        body, content_type = registry.render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    return scrape


async def _passes(check: Check) -> bool:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            return await check()
    except Exception:  # noqa: BLE001  # after any error the worker is not ready
        return False
