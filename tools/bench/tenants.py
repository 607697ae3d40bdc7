"""4 KiB uploads spread over many projects, against the same uploads in one (SPEC 7.3, 8.4).

What a project costs is its keyring: read once, then renewed with up to a thousand others by one
listing. The sides take turns; how many requests the storage gets an upload is counted in rounds
that are not timed, through a proxy.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from tools.bench import uploads
from tools.bench.figures import Row, Spread
from tools.bench.rotation.delay_proxy import delay_proxy
from tools.bench.rotation.world import open_world

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.harness.deployment import Deployment

PROJECTS: Final = (1_000, 10_000)
QUICK_PROJECTS: Final = (200,)
AGAINST: Final = "the same uploads in one project"
_AIM: Final = 0.95
_REQUESTS_AIM: Final = 1.05
_ENROLLED_AT_ONCE: Final = 64


def names(count: int) -> list[str]:
    """The ids of `count` projects."""
    return [f"tenant-{number:05}" for number in range(count)]


async def enroll_many(deployment: Deployment, projects: Sequence[str]) -> None:
    """Put the projects' keyrings, as enrollments leave them."""
    async with open_world(deployment) as world:
        for first in range(0, len(projects), _ENROLLED_AT_ONCE):
            await asyncio.gather(
                *(world.enroll(name) for name in projects[first : first + _ENROLLED_AT_ONCE])
            )


async def measure(
    deployment: Deployment,
    scratch: Path,
    *,
    numbers: Sequence[int],
    uploads_a_project: int,
    least: int,
    rounds: int,
) -> list[Row]:
    """The rows for each number of projects.

    Args:
        deployment: Where.
        scratch: For logs.
        numbers: How many projects.
        uploads_a_project: How many uploads each, so that a keyring is used more than once.
        least: The least number of uploads in a round.
        rounds: Of each side.
    """
    await uploads.enroll(deployment, scratch)
    await enroll_many(deployment, names(max(numbers)))
    rows: list[Row] = []
    for number in numbers:
        projects = names(number)
        count = max(least, number * uploads_a_project)
        many, one = list[uploads.Rate](), list[uploads.Rate]()
        for turn in range(rounds):
            name = f"t{number}-{turn}"
            # Whichever side comes second finds a bucket that holds more: they take turns in that.
            sides = [(many, f"m{name}", projects), (one, f"o{name}", [uploads.PROJECT])]
            for rates, prefix, of in sides if turn % 2 == 0 else reversed(sides):
                rates.append(await uploads.ours(deployment, scratch, prefix, count, projects=of))
        figure = f"4 KiB uploads in {number:,} projects"
        rows += uploads.compared(
            figure, deployment.s3.kind, many, one, AGAINST, rate_aim=_AIM, cpu_aim=_AIM
        )
        rows += await _requests(deployment, scratch, number, count, figure)
    return rows


async def _requests(
    deployment: Deployment, scratch: Path, number: int, count: int, figure: str
) -> list[Row]:
    """How many requests the storage got for each upload, the probe at the start among them."""
    async with delay_proxy(deployment.s3.endpoint_url, delay_ms=0, under="/") as between:
        await between.seen()
        await uploads.ours(
            deployment,
            scratch,
            f"c{number}",
            count,
            url=between.url,
            projects=names(number),
        )
        seen = await between.seen()
    server = deployment.s3.kind
    # Each keyring must be read once in the life of a process, whatever comes after.
    without_first = Spread(((seen.requests - number) / count,))
    return [
        Row(
            f"{figure}, without the first read of each keyring",
            server,
            "requests an upload",
            without_first,
            at_most=_REQUESTS_AIM,
        ),
        Row(
            f"{figure}, {count // number} uploads each, all requests",
            server,
            "requests an upload",
            Spread((seen.requests / count,)),
        ),
    ]
