"""What the model starts from: figures of one run of `--measure`, kept in `measured.json`.

CPU times are of one process on the machine that the file names; requests and bytes are the
same anywhere.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).with_name("measured.json")


@dataclass(frozen=True)
class AtSize:
    """CPU milliseconds that an object of `size_bytes` costs its process."""

    size_bytes: int
    cpu_ms: float


@dataclass(frozen=True)
class Operation:
    """What one object costs.

    `cpu` is by rising size. `own_ms` is for how long an object is under way without CPU time
    and without latency: the servers' own time, next to the process on loopback. `writes` and
    `reads` are requests to the storage an object, at a full queue.
    """

    cpu: tuple[AtSize, ...]
    own_ms: float
    writes: float
    reads: float

    def cpu_ms(self, size_bytes: float) -> float:
        """CPU milliseconds at any size: straight between what was measured, and beyond it."""
        if len(self.cpu) == 1:
            return self.cpu[0].cpu_ms
        above = next(
            (n for n, at in enumerate(self.cpu[1:], 1) if size_bytes <= at.size_bytes),
            len(self.cpu) - 1,
        )
        low, high = self.cpu[above - 1], self.cpu[above]
        slope = (high.cpu_ms - low.cpu_ms) / (high.size_bytes - low.size_bytes)
        return max(0.0, low.cpu_ms + slope * (size_bytes - low.size_bytes))


@dataclass(frozen=True)
class Broker:
    """What an upload costs the broker and its publisher.

    `message_bytes` is a request's size without its body, `event_bytes` an event's;
    `disk_factor` is bytes on disk for each byte of a request that waits, `memory_factor` the
    same in memory. `cpu_ms` is the broker's for a request and its event, `publisher_cpu_ms`
    the publisher's for sealing, signing and publishing.
    """

    message_bytes: float
    event_bytes: float
    disk_factor: float
    memory_factor: float
    cpu_ms: float
    publisher_cpu_ms: float


@dataclass(frozen=True)
class Measured:
    """Everything, and where it was measured."""

    machine: str
    upload: Operation
    staged: Operation
    writing: Operation
    proving: Operation
    read: Operation
    broker: Broker
    page_requests: float
    """Requests of a page besides those of its objects."""

    def as_json(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=2) + "\n"


def _operation(document: dict[str, Any]) -> Operation:
    return Operation(**{**document, "cpu": tuple(AtSize(**at) for at in document["cpu"])})


def parsed(text: str) -> Measured:
    """The file's text as values.

    Raises:
        TypeError, KeyError: it is of another form.
    """
    document = json.loads(text)
    operations = {
        name: _operation(document[name])
        for name in ("upload", "staged", "writing", "proving", "read")
    }
    return Measured(**{**document, **operations, "broker": Broker(**document["broker"])})


def committed() -> Measured:
    """The content of `measured.json`."""
    return parsed(MEASURED.read_text())
