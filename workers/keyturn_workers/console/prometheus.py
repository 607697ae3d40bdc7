"""History for the charts of *Now*, from a Prometheus that scrapes the workers (SPEC 16.2).

The console keeps no history: if `CONSOLE_PROMETHEUS_URL` is set, it asks that server, and no other
host. It reads only numbers and codes; any other content is reported as a problem on the page. An
answer serves every page for `FRESH_S`.
"""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx2
import orjson

from keyturn.errors import all_errors
from keyturn_workers.console.rendering.charts import Point

FRESH_S: Final = 15.0
TIMEOUT_S: Final = 2.0
BUCKETS: Final = 60
_MAX_BYTES: Final = 1024 * 1024
_MAX_COUNT: Final = 2.0**53
_MINUTE_S: Final = 60
_SERIES: Final = {
    "stored": 'sum(increase(keyturn_requests_served_total{{type="upload.stored"}}[{0}s]))',
    "refused": "sum(increase(keyturn_requests_refused_total[{0}s]))",
}
_CODES: Final = "sum by (code) (increase(keyturn_requests_refused_total[{0}s]))"


@dataclass(frozen=True, slots=True)
class History:
    """Rates and counts over a span of time.

    Attributes:
        at: The time of the query; None if there was none.
        series: By name, the number a minute, at the end of each part of the span.
        totals: By name, the number in all.
        codes: The number of refused requests with each code, the most frequent first.
        problem: Why the history could not be read, as a sentence.
    """

    at: datetime | None = None
    series: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    totals: Mapping[str, float] = field(default_factory=dict)
    codes: Sequence[tuple[str, float]] = ()
    problem: str = ""


class _UnusableError(Exception):
    """The server's response is not numbers."""


class Prometheus:
    """Reads the history of a deployment. Used from one event loop.

    `url` is the server's, such as `http://prometheus:9090`; it may contain a path and credentials.
    Without `transport` the network is used.
    """

    def __init__(self, url: str, *, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        # No proxy of the environment, no redirect: the console asks no other host.
        self._client = httpx2.AsyncClient(
            base_url=f"{url.rstrip('/')}/api/v1/",
            timeout=TIMEOUT_S,
            trust_env=False,
            follow_redirects=False,
            transport=transport,
        )
        self._known: dict[int, tuple[float, History]] = {}
        self._reading: dict[int, asyncio.Task[History]] = {}

    async def read(self, hours: int) -> History:
        """Return the last hours; if that fails, the previous history with the problem."""
        known = self._known.get(hours)
        if known is not None and time.monotonic() - known[0] < FRESH_S:
            return known[1]
        task = self._reading.get(hours)
        if task is None:
            task = self._reading[hours] = asyncio.create_task(self._read(hours))
            task.add_done_callback(lambda _: self._reading.pop(hours, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def _read(self, hours: int) -> History:
        known = self._known.get(hours, (0.0, History()))[1]
        try:
            # The client's own timeout applies to each read and write.
            async with asyncio.timeout(TIMEOUT_S):
                history = await self._ask(hours, datetime.now(UTC))
        except (TimeoutError, httpx2.HTTPError, _UnusableError) as exc:
            history = replace(known, problem=_words(exc))
        self._known[hours] = (time.monotonic(), history)
        return history

    async def _ask(self, hours: int, now: datetime) -> History:
        step_s = hours * 3600 // BUCKETS
        names = list(_SERIES)
        series = await asyncio.gather(
            *(self._series(_SERIES[name].format(step_s), step_s, now) for name in names)
        )
        codes = await self._query(
            "query", query=_CODES.format(hours * 3600), time=str(now.timestamp())
        )
        return History(
            at=now,
            series={
                name: [(at, value * _MINUTE_S / step_s) for at, value in points]
                for name, points in zip(names, series, strict=True)
            },
            totals={
                name: sum(value for _, value in points)
                for name, points in zip(names, series, strict=True)
            },
            codes=_codes(codes),
        )

    async def _series(self, query: str, step_s: int, now: datetime) -> list[Point]:
        """Return one value for each part of the span; 0 where the server has none."""
        start = now - timedelta(seconds=step_s * (BUCKETS - 1))
        found = await self._query(
            "query_range",
            query=query,
            start=str(start.timestamp()),
            end=str(now.timestamp()),
            step=str(step_s),
        )
        values = [0.0] * BUCKETS
        for row in found:
            for at, value in _pairs(row):
                index = round((at - start.timestamp()) / step_s)
                if 0 <= index < BUCKETS:
                    values[index] += value
        return [
            (start + timedelta(seconds=step_s * index), value) for index, value in enumerate(values)
        ]

    async def _query(self, path: str, **form: str) -> list[dict[str, Any]]:
        pieces, size = [], 0
        async with self._client.stream("POST", path, data=form) as response:
            response.raise_for_status()
            async for piece in response.aiter_bytes():
                size += len(piece)
                if size > _MAX_BYTES:
                    raise _UnusableError
                pieces.append(piece)
        try:
            answer = orjson.loads(b"".join(pieces))
            rows = answer["data"]["result"]
        except (orjson.JSONDecodeError, KeyError, TypeError) as exc:
            raise _UnusableError from exc
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise _UnusableError
        return rows


def _pairs(row: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return the times and values of a row; a value that is no count, such as NaN, is skipped."""
    try:
        pairs = [(float(at), float(value)) for at, value in row.get("values", [row.get("value")])]
    except (TypeError, ValueError, OverflowError) as exc:
        raise _UnusableError from exc
    if not all(math.isfinite(at) and not _MAX_COUNT < value < math.inf for at, value in pairs):
        raise _UnusableError
    return [(at, max(0.0, value)) for at, value in pairs if math.isfinite(value)]


def _codes(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """Return codes of SPEC 12 with their counts; the server may return any label."""
    known = all_errors()
    counts = [
        (code, sum(value for _, value in _pairs(row)))
        for row in rows
        if (code := _code(row)) in known
    ]
    seen = [(code, count) for code, count in counts if round(count)]
    return sorted(seen, key=lambda each: (-each[1], each[0]))


def _code(row: Mapping[str, Any]) -> str:
    metric = row.get("metric")
    code = metric.get("code", "") if isinstance(metric, dict) else None
    if not isinstance(code, str):
        raise _UnusableError
    return code


def _words(error: Exception) -> str:
    if isinstance(error, httpx2.HTTPStatusError):
        return f"Prometheus responded with status {error.response.status_code}."
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return "Prometheus did not respond in time."
    if isinstance(error, httpx2.HTTPError):
        return "Prometheus cannot be reached."
    return "Prometheus responded with something other than numbers."
