"""The counts of a sweep (SPEC 8.6). Pure values."""

from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True, slots=True)
class Counts:
    """What one page attempt counted, or the sum of many.

    `objects` counts all object keys except foreign names. `rewrapped` and `encrypted` count
    writes, the others count states.
    """

    objects: int = 0
    rewrapped: int = 0
    current: int = 0
    plaintext: int = 0
    encrypted: int = 0
    deleted: int = 0
    foreign: int = 0
    failed: int = 0
    noncurrent_stale: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            *(getattr(self, name) + getattr(other, name) for name in _NAMES),
        )

    def without_writes(self) -> "Counts":
        """Only the states."""
        return Counts(**(asdict(self) | {"rewrapped": 0, "encrypted": 0}))

    def writes(self) -> "Counts":
        """Only the writes."""
        return Counts(rewrapped=self.rewrapped, encrypted=self.encrypted)

    @property
    def all_as_desired(self) -> bool:
        """Whether nothing failed and every object is in its desired state."""
        as_desired = self.current + self.plaintext + self.deleted
        return not self.failed and not self.noncurrent_stale and as_desired == self.objects

    def to_json(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)


_NAMES = tuple(field.name for field in fields(Counts))
