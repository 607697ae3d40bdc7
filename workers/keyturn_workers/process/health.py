"""`/healthz`, `/readyz` and `/metrics` of a worker, on `HEALTH_PORT` (SPEC 11).

Alive means that the process responds. Ready means that now the broker is connected and accepts
messages, every role has its consumer, and the bucket responds. Metrics cover only this process,
and need neither broker nor bucket.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from keyturn.errors import PublisherError, StorageUnavailableError
from keyturn_workers.core.errors import AddressError, StorageResponseError
from keyturn_workers.process.metrics_registry import Registry

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
        problems = await _find_problems(checks)
        is_ready = not problems
        body: dict[str, object] = {
            "ready": is_ready,
            "checks": {name: name not in problems for name in checks},
        }
        if known := {name: problem for name, problem in problems.items() if problem}:
            body["problems"] = known
        return web.json_response(body, status=200 if is_ready else 503)

    return ready


async def run_checks(checks: Mapping[str, Check]) -> dict[str, bool]:
    """Run the checks: True for each that passes; one that raises or takes too long fails."""
    problems = await _find_problems(checks)
    return {name: name not in problems for name in checks}


async def _find_problems(checks: Mapping[str, Check]) -> dict[str, str]:
    """The failed checks, with the reason of each; empty if unknown."""
    problems = await asyncio.gather(*map(_find_problem, checks.values()))
    named = zip(checks, problems, strict=True)
    return {name: problem for name, problem in named if problem is not None}


def _scrape(registry: Registry) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def scrape(request: web.Request) -> web.Response:
        body, content_type = registry.render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    return scrape


async def _find_problem(check: Check) -> str | None:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            return None if await check() else ""
    except (PublisherError, StorageResponseError, StorageUnavailableError) as exc:
        return str(exc)
    except Exception:  # noqa: BLE001  # after any error the worker is not ready
        return ""  # another library's text can contain an address
