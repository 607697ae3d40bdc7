"""An upload worker while somebody looks at a console, and without one (SPEC 16).

The sides take turns in one run, and each round drains its own queue. What counts is the worker's
own CPU time for each upload. Throughput is reported too: on a machine with few cores the console
and the page that somebody looks at take time from the broker, the storage and the worker alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tools.bench import uploads
from tools.bench.console.processes import console, looked_at
from tools.bench.processes import worker

if TYPE_CHECKING:
    from pathlib import Path

    from tools.bench.figures import Row
    from tools.bench.uploads import Rate
    from tools.harness.console import ConsoleDeployment

AGAINST: Final = "the same without a console"
FIGURE: Final = "4 KiB uploads, a console looked at"
_AIM: Final = 0.99


async def measure(
    deployment: ConsoleDeployment, scratch: Path, *, count: int, rounds: int
) -> list[Row]:
    """The rows: CPU time for each upload, which has an aim, and throughput, which has none."""
    await uploads.enroll(deployment, scratch)
    seen, alone = list[uploads.Rate](), list[uploads.Rate]()
    env = deployment.worker_env()
    async with worker(env, scratch / "control.log", "control"):
        await uploads.ours(deployment, scratch, "warm", count)
        for turn in range(rounds):
            # Whichever side comes second finds more in the bucket: they take turns in that too.
            for is_seen in (True, False) if turn % 2 == 0 else (False, True):
                if is_seen:
                    seen.append(await _seen(deployment, scratch, f"s{turn}", count))
                else:
                    alone.append(await uploads.ours(deployment, scratch, f"a{turn}", count))
    return uploads.compared(FIGURE, deployment.s3.kind, seen, alone, AGAINST, cpu_aim=_AIM)


async def _seen(deployment: ConsoleDeployment, scratch: Path, name: str, count: int) -> Rate:
    async with (
        console(deployment, scratch, f"console-{name}") as running,
        looked_at(running),
    ):
        await running.settled()
        return await uploads.ours(deployment, scratch, name, count)
