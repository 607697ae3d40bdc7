"""4 KiB uploads where the storage is the limit: it serves a fixed number of requests a second.

A proxy in front of the real server passes few requests at once and delays each of them, like a
server with that many threads. The machine then has spare cores, and the side that keeps more
requests waiting is not the slower one. Both sides go through the proxy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.bench import uploads
from tools.bench.rotation.delay_proxy import delay_proxy

if TYPE_CHECKING:
    from pathlib import Path

    from tools.bench.figures import Row
    from tools.harness.deployment import Deployment

AT_ONCE = 4
HELD_MS = 25
_AIM = 1.0


async def measure(
    deployment: Deployment, scratch: Path, *, count: int, rounds: int
) -> tuple[list[Row], list[str]]:
    """The rows of both comparisons, and what the proxy counted.

    The reads that the other side does as well are those of our own rounds, as the proxy saw
    them: where uploads wait for the server, more of them share one read.
    """
    await uploads.enroll(deployment, scratch)
    found, notes = uploads.Rounds(), list[str]()
    under = f"/{deployment.bucket}/{uploads.PROJECT}/"
    async with delay_proxy(
        deployment.s3.endpoint_url, delay_ms=HELD_MS, under=under, at_once=AT_ONCE
    ) as between:
        for number in range(rounds):
            await between.seen()
            name = f"limited-{number}"
            ours = await uploads.ours(deployment, scratch, name, count, url=between.url)
            seen = await between.seen()
            found.reads = (seen.requests - seen.under) / count
            found.ours.append(ours)
            for side, prefix, reads in (
                (found.theirs, "limited", 0.0),
                (found.same, "limited-same", found.reads),
            ):
                rate = await uploads.theirs(
                    deployment, f"{prefix}-{number}", count, reads, url=between.url
                )
                side.append(rate)
            notes.append(
                f"limited storage, round {number}: {seen.requests / count:.2f} requests an upload"
            )
    figure = f"4 KiB uploads, storage limited to {AT_ONCE * 1000 // HELD_MS} requests/s"
    same = f"the same and {found.reads:.2f} GETs each"
    server = deployment.s3.kind
    return [
        *uploads.compared(figure, server, found.ours, found.theirs, "bare aioboto3 put loop"),
        *uploads.compared(figure, server, found.ours, found.same, same, rate_aim=_AIM),
    ], notes
