"""Derivations a second, and how long one takes, by provider (SPEC 2.2).

By the classes that workers use, without the bounds that workers put on calls
(`KMS_CONCURRENCY`, `KMS_REQUESTS_PER_S`).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tools.bench.figures import Row, Spread
from tools.bench.kms.providers import PROCESS
from tools.bench.processes import printed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tools.bench.kms.providers import Provider

AT_ONCE: Final = (1, 16)
COUNT: Final = 2_000
QUICK_COUNT: Final = 200
# One in this process takes microseconds.
_LOCAL_TIMES: Final = 20


@dataclass
class Found:
    """What the rounds of one provider gave, at one concurrency."""

    per_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)

    def add(self, report: Mapping[str, Any]) -> None:
        """Add a round, as `provider_process` printed it."""
        latencies_s: list[float] = report["latencies_s"]
        self.per_s.append(len(latencies_s) / report["wall_s"])
        cuts_s = statistics.quantiles(latencies_s, n=100, method="inclusive")
        self.p50_ms.append(1000 * cuts_s[49])
        self.p99_ms.append(1000 * cuts_s[98])


async def measure(provider: Provider, *, count: int, rounds: int) -> list[Row]:
    """The rows of one provider."""
    count *= _LOCAL_TIMES if provider.name == "local" else 1
    found = {at_once: Found() for at_once in AT_ONCE}
    for _ in range(rounds):
        for at_once, of in found.items():
            options = ("--count", str(count), "--at-once", str(at_once))
            of.add(await printed(provider.settings(), PROCESS, "derive", *options))
    return [row for at_once, of in found.items() for row in rows(provider.name, at_once, of)]


def rows(provider: str, at_once: int, found: Found) -> list[Row]:
    """Rate and latency at one concurrency."""
    figure = f"derivations, {at_once} at once"
    return [
        Row(figure, provider, "/s", Spread(tuple(found.per_s))),
        Row(f"{figure}, p50", provider, "ms", Spread(tuple(found.p50_ms))),
        Row(f"{figure}, p99", provider, "ms", Spread(tuple(found.p99_ms))),
    ]
