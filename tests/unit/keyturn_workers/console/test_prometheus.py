"""The history of *Now* is read from one Prometheus, and from no other host (SPEC 16.2)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import httpx2
import orjson
import pytest

from keyturn_workers.console import prometheus as module
from keyturn_workers.console.prometheus import BUCKETS, Prometheus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_URL = "http://user:secret@prometheus.test:9090/prefix"


@dataclass
class _Server:
    """Answers each range with one value for each step, and the codes with two counts."""

    value: str = "6"
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    answer: httpx2.Response | Exception | None = None

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        form = {name: values[0] for name, values in parse_qs(request.content.decode()).items()}
        self.asked.append((str(request.url), form))
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            return self.answer
        if "step" in form:
            start, step = float(form["start"]), float(form["step"])
            values = [[start + step * index, self.value] for index in range(0, BUCKETS, 2)]
            result: list[Any] = [{"metric": {}, "values": values}]
        else:
            result = [
                {"metric": {"code": "bad_seal"}, "value": [0, "2.0"]},
                {"metric": {"code": "request_expired"}, "value": [0, "7"]},
                {"metric": {"code": "<script>"}, "value": [0, "9"]},
                {"metric": {"code": "not_permitted"}, "value": [0, "0"]},
            ]
        return httpx2.Response(200, content=orjson.dumps({"data": {"result": result}}))


def _result(rows: list[Any]) -> httpx2.Response:
    return httpx2.Response(200, content=orjson.dumps({"data": {"result": rows}}))


def _prometheus(server: _Server) -> Prometheus:
    return Prometheus(_URL, transport=httpx2.MockTransport(server))


async def test_a_span_is_read_in_even_parts_and_what_is_missing_is_zero() -> None:
    server = _Server()
    history = await _prometheus(server).read(6)
    stored = history.series["stored"]
    assert len(stored) == BUCKETS
    # Six in each part of six minutes is one a minute.
    assert [value for _, value in stored[:4]] == [1, 0, 1, 0]
    assert (stored[1][0] - stored[0][0]).total_seconds() == 360
    assert history.totals["stored"] == 6 * BUCKETS / 2
    assert history.codes == [("request_expired", 7.0), ("bad_seal", 2.0)]
    assert history.problem == ""
    assert {url.partition("?")[0] for url, _ in server.asked} == {
        f"{_URL}/api/v1/query_range",
        f"{_URL}/api/v1/query",
    }


async def test_an_answer_serves_all_who_look_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    server = _Server()
    prometheus = _prometheus(server)
    await asyncio.gather(*(prometheus.read(1) for _ in range(5)))
    await prometheus.read(1)
    assert len(server.asked) == 3
    monkeypatch.setattr(module, "FRESH_S", 0.0)
    await prometheus.read(1)
    assert len(server.asked) == 6


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (httpx2.ConnectError("refused"), "Prometheus cannot be reached."),
        (httpx2.ReadTimeout("slow"), "Prometheus did not respond in time."),
        (httpx2.Response(401), "Prometheus responded with status 401."),
        (httpx2.Response(302, headers={"Location": "http://elsewhere.test/"}), "status 302"),
        (httpx2.Response(200, content=b"<html>"), "something other than numbers"),
        (httpx2.Response(200, content=b'{"data": {"result": [[]]}}'), "something other"),
        (
            httpx2.Response(200, content=b'{"data": {"result": [{"values": [["x", "y"]]}]}}'),
            "something other",
        ),
        (httpx2.Response(200, content=b" " * (1024 * 1024 + 1)), "something other"),
        (_result([{"metric": "x", "value": [0, "1"]}]), "something other"),
        (_result([{"metric": {"code": []}, "value": [0, "1"]}]), "something other"),
        (_result([{"metric": {}, "values": [["inf", "1"]]}]), "something other"),
        (_result([{"metric": {}, "values": [["nan", "1"]]}]), "something other"),
        (_result([{"metric": {}, "values": [[0, "1e308"], [0, "1e308"]]}] * 2), "something other"),
    ],
)
async def test_what_cannot_be_read_is_said_beside_what_was_read_before(
    monkeypatch: pytest.MonkeyPatch, answer: Any, problem: str
) -> None:
    monkeypatch.setattr(module, "FRESH_S", 0.0)
    server = _Server()
    prometheus = _prometheus(server)
    before = await prometheus.read(1)
    server.answer = answer
    after = await prometheus.read(1)
    assert problem in after.problem
    assert (after.series, after.at) == (before.series, before.at)
    assert "secret" not in after.problem
    assert all("prometheus.test" in url for url, _ in server.asked)
    await prometheus.close()


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-3"])
async def test_what_is_no_count_is_nothing(value: str) -> None:
    history = await _prometheus(_Server(value)).read(1)
    assert history.totals["stored"] == 0


async def test_an_answer_that_trickles_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece comes within the timeout of a read, and the answer never ends."""
    monkeypatch.setattr(module, "TIMEOUT_S", 0.05)

    async def trickle() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    def answer(request: httpx2.Request) -> httpx2.Response:
        del request
        return httpx2.Response(200, content=trickle())

    prometheus = Prometheus(_URL, transport=httpx2.MockTransport(answer))
    async with asyncio.timeout(5):
        history = await prometheus.read(1)
    assert "in time" in history.problem
