"""The gateway readers of `make chaos`, with a faulty gateway (SPEC 9)."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from keyturn.identifiers import keyring_s3_key, object_s3_key
from tools.chaos import gateway_readers
from tools.chaos.gateway_readers import GatewayReaders
from tools.chaos.plan import Upload, plaintext

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    Answer = Callable[[web.Request, bool], Awaitable[web.StreamResponse]]

SEED = 7
UPLOAD = Upload(1, "the upload's id", "amber", "a folder/ü.bin", 3000)
OLD, CURRENT = "the old key", "the current key"
READS = 60


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_readers, "_PAUSE_S", 0.001)
    monkeypatch.setattr(gateway_readers, "_GONE_S", 0.001)


@asynccontextmanager
async def _standing_for_a_gateway(answer: Answer) -> AsyncIterator[str]:
    async def respond(request: web.Request) -> web.StreamResponse:
        assert request.path == "/v1/projects/amber/objects/a folder/ü.bin"
        key = request.headers["Authorization"].removeprefix("Bearer ")
        assert key in {OLD, CURRENT}
        return await answer(request, key == CURRENT)

    app = web.Application()
    app.router.add_get("/{rest:.*}", respond)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def _read(
    answer: Answer,
    *,
    accepted_at: float = 0.0,
    denied: dict[str, float] | None = None,
    stolen: Iterable[str] = (),
    knows_marks: bool = True,
) -> GatewayReaders:
    """What two readers noted in some reads; both keys were accepted long ago, or as given."""
    operator: Any = SimpleNamespace(
        tenants={"amber": SimpleNamespace(api_keys=[OLD, CURRENT])},
        accepted={"amber": [0.0, accepted_at]},
        supervisor=SimpleNamespace(
            processes={"gateway-1": SimpleNamespace(knows_marks=lambda: knows_marks)}
        ),
    )
    async with _standing_for_a_gateway(answer) as url:
        found = GatewayReaders(
            operator, url, SEED, stored=[UPLOAD], denied=denied or {}, stolen=set(stolen)
        )
        task = asyncio.create_task(found.keep_reading())
        async with asyncio.timeout(30):
            while found.seen.total() < READS:
                assert not task.done()
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return found


def _answers(old: int, current: int, body: bytes = plaintext(SEED, UPLOAD)) -> Answer:
    """A gateway that gives each key this status, and with 200 this body."""

    async def answer(_: web.Request, is_current: bool) -> web.StreamResponse:
        status = current if is_current else old
        return web.Response(status=status, body=body if status == 200 else b"")

    return answer


async def test_a_correct_gateway_passes() -> None:
    """Both kinds of reads occur: otherwise the other tests would prove nothing."""
    found = await _read(_answers(401, 200))
    assert found.wrong == []
    assert set(found.seen) == {"200", "401 to an old key"}
    assert min(found.seen.values()) > 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (_answers(401, 200, plaintext(SEED, UPLOAD)[:-1] + b"!"), "served bytes other than"),
        (_answers(401, 200, plaintext(SEED, UPLOAD)[:-1]), "served bytes other than"),
        (_answers(200, 200), "served to a key that was rotated out"),
        (_answers(401, 401), "the current key was rejected"),
        (_answers(401, 500), "answered 500"),
    ],
)
async def test_a_faulty_gateway_is_found(answer: Answer, message: str) -> None:
    found = await _read(answer)
    assert any(message in wrong and UPLOAD.upload_id in wrong for wrong in found.wrong), found.wrong


async def test_a_broken_connection_is_not_a_wrong_response() -> None:
    """A truncated response does not count as wrong bytes."""

    async def broken(request: web.Request, current: bool) -> web.StreamResponse:
        if not current:
            return web.Response(status=503)
        begun = web.StreamResponse(headers={"Content-Length": str(UPLOAD.size_bytes)})
        await begun.prepare(request)
        await begun.write(plaintext(SEED, UPLOAD)[:100])
        assert request.transport is not None
        request.transport.abort()
        return begun

    found = await _read(broken)
    assert found.wrong == []
    assert set(found.seen) == {"broken", "503 to an old key"}


@pytest.mark.parametrize("answer", [_answers(200, 200), _answers(401, 401)])
async def test_either_response_is_correct_during_a_rotation(answer: Answer) -> None:
    """The gateway may go by its cache for a while (SPEC 9.1): nothing is surely wrong then."""
    just_now = time.monotonic() + 3600  # however slowly this test runs
    assert (await _read(answer, accepted_at=just_now)).wrong == []


@pytest.mark.parametrize(
    ("answer", "s3_key", "message"),
    [
        (_answers(401, 404), object_s3_key(UPLOAD.project, UPLOAD.key), "answered 404"),
        (_answers(401, 401), keyring_s3_key(UPLOAD.project), "the current key was rejected"),
    ],
)
async def test_the_gateway_may_deny_what_the_storage_denied(
    answer: Answer, s3_key: str, message: str
) -> None:
    """For as long as a cache lasts, and of that key alone."""
    later, long_ago = time.monotonic() + 3600, time.monotonic() - 60
    assert (await _read(answer, denied={s3_key: later})).wrong == []
    for denied in ({s3_key: long_ago}, {"another key": later}):
        found = await _read(answer, denied=denied)
        assert any(message in wrong for wrong in found.wrong)


@pytest.mark.parametrize(("knows_marks", "problems"), [(False, 0), (True, 2)])
async def test_a_gateway_may_read_the_marks_first_after_its_start(
    *, knows_marks: bool, problems: int
) -> None:
    """Until then it may accept a keyring that a thief has rolled back."""
    found = await _read(_answers(200, 401), stolen={"amber"}, knows_marks=knows_marks)
    assert len({message.rpartition(": ")[2] for message in found.wrong}) == problems
