"""All harnesses, by name.

| harness | what it reads |
| --- | --- |
| `metadata` | an object's `enc-` names and its caller's own (SPEC 4.3 to 4.6) |
| `object` | a whole object that a bucket writer changed, by every reader there is (SPEC 13) |
| `sealed` | Cobblestone-256: whole, streamed, by the chunk (SPEC 3) |
| `v0` | objects of the earlier system, as an import opens them (SPEC 17.6) |
| `wraps` | wraps, tombstones, intake secrets and signatures (SPEC 3.2, 4.3, 6.3, 8.7) |
| `records` | keyrings and sweeps' records, raw and sealed again (SPEC 5, 8.5) |
| `messages` | requests, events and a sweep's hints as bytes (SPEC 6) |
| `notifications` | what storage servers say about new objects (SPEC 17.4) |
| `amqp` | a message's properties, and its copy in the dead letters (SPEC 12) |
| `http` | paths, ranges and conditions of the gateway (SPEC 9) |
| `gateway_documents` | listings and links that the gateway's client receives (SPEC 9.3) |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.fuzz.harnesses import (
    amqp,
    bodies,
    gateway_documents,
    http,
    messages,
    metadata,
    notifications,
    objects,
    records,
    wraps,
)

if TYPE_CHECKING:
    from tests.fuzz.harness import Harness

ALL: Final[dict[str, Harness]] = {
    harness.name: harness
    for harness in (
        metadata.HARNESS,
        objects.HARNESS,
        bodies.SEALED,
        bodies.V0,
        wraps.HARNESS,
        records.HARNESS,
        messages.HARNESS,
        notifications.HARNESS,
        amqp.HARNESS,
        http.HARNESS,
        gateway_documents.HARNESS,
    )
}
