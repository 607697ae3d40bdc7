"""What needs a person now: pure rules over what the console knows (SPEC 16.2).

Each rule is a function of the facts, and gives at most a few items; what there are many of becomes
one item with their number and a link to the table.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from keyturn_workers.console.model.rows import (
    AttentionItem,
    DeadSummary,
    Feed,
    MasterKeyRow,
    ProjectRow,
    QueueRow,
    SweepRow,
    WorkerRow,
)
from keyturn_workers.console.model.samples import Samples

_SEVERITIES: Final = ("act", "soon", "info")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules judge by."""

    now: datetime
    started_at: datetime
    feeds: Sequence[Feed]
    queues: Sequence[QueueRow]
    depths: Callable[[str], Sequence[tuple[datetime, int]]]
    workers: Sequence[WorkerRow]
    projects: Sequence[ProjectRow]
    is_inventory_complete: bool
    sweeps: Sequence[SweepRow]
    samples_of: Callable[[SweepRow], Samples | None]
    master_keys: Callable[[], Sequence[MasterKeyRow]]
    dead: DeadSummary | None
    audit_findings: Mapping[int, tuple[str, ...]]
    notes: Sequence[str] = ()


Rule = Callable[[Facts], Iterable[AttentionItem]]


def broker_gone(facts: Facts) -> Iterable[AttentionItem]:
    """Nothing can be read of the broker."""
    events = next((feed for feed in facts.feeds if feed.name == "events"), None)
    if events is None or events.is_connected:
        return
    since = events.since or facts.started_at
    yield AttentionItem(
        "broker_gone",
        "act",
        "The broker cannot be read",
        events.problem or "not connected yet",
        "/queues",
        "Check that RabbitMQ runs and that this console can reach it. "
        "What is shown is as of the last event.",
        as_of=since,
    )


RULES: Final[tuple[Rule, ...]] = (broker_gone,)


def find_attention(facts: Facts) -> tuple[AttentionItem, ...]:
    """The items of all rules, the most urgent first."""
    items = [item for rule in RULES for item in rule(facts)]
    items.sort(key=lambda item: _SEVERITIES.index(item.severity))
    return tuple(items)
