"""The publisher that signed a request, and the digest of its bytes (SPEC 6.7). Pure."""

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RequestOrigin:
    """The publisher that signed a request, and its bytes, as its events name them (SPEC 6.7).

    `request` is the SHA-256 of the request's body as signed, in 64 hex digits. `actor` is the
    person whom the request names, if any (SPEC 15.3). The bytes contain it, so it takes no part in
    comparisons, and events do not name it.
    """

    publisher: str
    request: str
    actor: str | None = field(default=None, compare=False)

    @classmethod
    def of(cls, publisher: str, body: bytes, actor: str | None = None) -> "RequestOrigin":
        """Return the origin of a request with these bytes."""
        return cls(publisher, hashlib.sha256(body).hexdigest(), actor)
