"""What an uploader measures: each stage that an upload came through, and the bytes it stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.support.scrape import risen, shown
from tests.unit.keyturn_workers.upload.bench import DATA, Bench, bench, request

if TYPE_CHECKING:
    from keyturn.messages import UploadRequested

_BYTES = "keyturn_stored_bytes_total"
_STAGE = 'keyturn_stage_seconds_count{queue="keyturn.upload",stage="'


async def _measured(on: Bench, asked: UploadRequested, **more: Any) -> dict[str, float]:
    """Times of each stage, and bytes, while this upload is served."""
    before = shown(on.metrics)
    await on.serve(asked, **more)
    rise = risen(on.metrics, before)
    return {name.removeprefix(_STAGE).removesuffix('"}'): value for name, value in rise.items()}


async def test_stored_at_once() -> None:
    on = bench()
    expected = {"open": 1, "store": 1, "settle": 1, _BYTES: len(DATA)}
    assert await _measured(on, request(on)) == expected


async def test_a_staged_body_is_looked_for_first() -> None:
    on = bench("put_stream")
    expected = {"look": 1, "open": 1, "store": 1, "settle": 1, _BYTES: len(DATA)}
    assert await _measured(on, request(on, "put_stream")) == expected


async def test_what_stands_is_not_stored_again() -> None:
    """Delivered again after it was stored: found as it is to be, or brought there."""
    on = bench()
    asked = request(on)
    await on.serve(asked)
    assert await _measured(on, asked, seen_before=True) == {"look": 1}
    await on.turn()
    assert await _measured(on, asked, seen_before=True) == {"look": 1, "settle": 1}
