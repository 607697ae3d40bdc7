"""Deliveries: a good request that was mutated, signed or not, in properties of any kind.

Most are signed after the mutation, so that not the signature alone is tried.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from keyturn.topology import CONTROL_QUEUE, REQUESTS, UPLOAD_QUEUE
from tests.fuzz import documents, odd_values, wire
from tools.harness import requests as rq

if TYPE_CHECKING:
    import random

    from tests.fuzz.valid_messages import Document, Pool
    from tools.harness.deployment import Deployment

_UPLOAD_SHARE: Final = 0.55
# Above this there are headers nested so deep that the table is not read.
_READABLE_BYTES: Final = 2000


@dataclass(frozen=True)
class Case:
    """One delivery. `header` is a content header from its flags on.

    `plain` says that the properties are as a publisher sends them, `sound` that they are at
    least well formed. `as_made` says that nothing was changed: such a request must be served.
    """

    queue: str
    routing_key: str
    body: bytes
    header: bytes
    sound: bool = True
    plain: bool = True
    as_made: bool = False

    def dump(self) -> bytes:
        """As a file that a replay reads."""
        fields = asdict(self)
        for name in ("body", "header"):
            fields[name] = base64.b64encode(fields[name]).decode()
        return json.dumps(fields, indent=1).encode()

    @classmethod
    def load(cls, data: bytes) -> Case:
        """The reverse of `dump`."""
        fields: dict[str, Any] = json.loads(data)
        for name in ("body", "header"):
            fields[name] = base64.b64decode(fields[name])
        return cls(**fields)


class Cases:
    """Draws mutated deliveries of a deployment's requests."""

    def __init__(self, deployment: Deployment, pool: Pool, rng: random.Random) -> None:
        self._pool = pool
        self._rng = rng
        self._key, self._narrow = deployment.publisher_key, deployment.narrow_key

    def draw(self, message_id: str = "") -> Case:
        """The next one; it carries this message id, where it carries any."""
        rng, pool = self._rng, self._pool
        upload = rng.random() < _UPLOAD_SHARE
        document = rng.choice(pool.uploads if upload else pool.controls)
        document = document | {"requested_at": rq.now()}
        changed = rng.random() < 0.65
        made = documents.mutated(rng, document, pool.all) if changed else document
        body = documents.encoded(rng, made)
        if rng.random() < 0.12:
            body, changed = documents.broken(rng, body), True
        return self.of(body, document, message_id, as_made=not changed)

    def of(self, body: bytes, like: Document, message_id: str, *, as_made: bool) -> Case:
        """A delivery of these bytes, in the place of a good request."""
        rng = self._rng
        signed, right = self._signed(body)
        if rng.random() < 0.02:
            body, right = odd_values.raw(rng, body), False
        queue = UPLOAD_QUEUE if like["type"] == "upload.requested" else CONTROL_QUEUE
        routing_key = like["type"]
        if rng.random() < 0.03:
            routing_key, right = rng.choice((*REQUESTS, queue, "", "x.y")), False
        properties = {"message_id": message_id.encode()} if message_id else {}
        plain = wire.header_bytes(signed, properties)
        header, sound = self._header(signed, properties)
        as_made = as_made and right and sound and len(header) < _READABLE_BYTES
        return Case(queue, routing_key, body, header, sound, header == plain, as_made)

    def good(self, document: Document, message_id: str) -> Case:
        """The request as it should be sent."""
        body = rq.encode(document)
        queue = UPLOAD_QUEUE if document["type"] == "upload.requested" else CONTROL_QUEUE
        signed = _entries(rq.headers(body, self._key))
        properties = {"message_id": message_id.encode(), "delivery_mode": b"\x02"}
        header = wire.header_bytes(signed, properties)
        return Case(queue, document["type"], body, header, as_made=True)

    def _signed(self, body: bytes) -> tuple[list[wire.Entry], bool]:
        """The two headers of SPEC 6.3, and whether they are right."""
        rng, key, narrow = self._rng, self._key, self._narrow
        headers = _entries(rq.headers(body, key))
        if rng.random() < 0.93:
            return headers, True
        match rng.randrange(6):
            case 0:
                found = _entries(rq.headers(body, narrow, publisher="narrow"))
            case 1:
                found = _entries(rq.headers(body, key, deployment="production"))
            case 2:
                found = _entries(rq.headers(body, narrow))
            case 3:
                found = rng.sample(headers, rng.choice((0, 1)))
            case 4:
                name = rng.choice(headers)[0]
                found = [e for e in headers if e[0] != name] + [(name, wire.odd_value(rng))]
            case _:
                found = [
                    (name, wire.text(odd_values.raw(rng, value[5:]))) for name, value in headers
                ]
        return found, False

    def _header(self, signed: list[wire.Entry], properties: dict[str, bytes]) -> tuple[bytes, bool]:
        rng = self._rng
        headers = list(signed)
        if rng.random() < 0.25:
            headers += [wire.odd_entry(rng) for _ in range(rng.choice((1, 1, 2, 5)))]
        if rng.random() < 0.0005:
            headers += wire.many(rng)
        if rng.random() < 0.2:
            properties = {**wire.odd_properties(rng), **properties}
        if rng.random() < 0.03:
            properties["delivery_mode"] = bytes([rng.choice((0, 1, 2, 3, 255))])
        # Of a duplicate name, broker and client may keep different values.
        header = wire.header_bytes(list(dict(headers).items()), properties)
        if rng.random() < 0.02:
            return odd_values.raw(rng, header), False
        return header, True


def _entries(headers: dict[str, str]) -> list[wire.Entry]:
    return [(name.encode(), wire.text(value)) for name, value in headers.items()]
