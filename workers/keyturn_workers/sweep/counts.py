"""The counts of a sweep (SPEC 8.6). Pure values."""

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Counts:
    """What one look at some keys found, or the sum over many.

    `objects` counts all keys but the foreign ones. `rewrapped` and `encrypted` count writes,
    the others what was seen.
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

    def seen(self) -> "Counts":
        """The same without writes: what the last look found."""
        return Counts(**(asdict(self) | {"rewrapped": 0, "encrypted": 0}))

    def written(self) -> "Counts":
        """The writes alone."""
        return Counts(rewrapped=self.rewrapped, encrypted=self.encrypted)

    @property
    def nothing_left(self) -> bool:
        """Whether nothing failed and every object is as it should be."""
        settled = self.current + self.plaintext + self.deleted
        return not self.failed and not self.noncurrent_stale and settled == self.objects

    def to_json(self) -> dict[str, int]:
        """By name."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Counts":
        """The reverse.

        Raises:
            ValueError, KeyError: not counts.
        """
        values = [document[name] for name in _NAMES]
        if not all(type(value) is int and value >= 0 for value in values):
            raise ValueError("counts")
        return cls(*values)


_NAMES = tuple(field.name for field in fields(Counts))
