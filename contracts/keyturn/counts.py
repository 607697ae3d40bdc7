"""The counts of a sweep: one type for records, events, reports and evidence (SPEC 8.6). Pure."""

from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field

_Count = Annotated[int, Field(ge=0)]


class Counts(BaseModel):
    """What one page attempt counted, or the sum of many.

    `objects` counts all object keys except `foreign` names. `rewrapped` and `encrypted` count
    writes, the others count states. Readers ignore counts that they do not know.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", hide_input_in_errors=True)

    objects: _Count = 0
    rewrapped: _Count = 0
    current: _Count = 0
    plaintext: _Count = 0
    encrypted: _Count = 0
    deleted: _Count = 0
    foreign: _Count = 0
    failed: _Count = 0
    noncurrent_stale: _Count = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts.model_construct(
            **{name: getattr(self, name) + getattr(other, name) for name in COUNT_FIELDS}
        )

    def with_writes(self, writes: "Counts") -> Self:
        """Return these states, with the writes of another count."""
        return self.model_copy(
            update={"rewrapped": writes.rewrapped, "encrypted": writes.encrypted}
        )

    def without_writes(self) -> Self:
        """Return only the states."""
        return self.with_writes(Counts())

    def writes(self, since: "Counts | None" = None) -> "Counts":
        """Return only the writes; without those counted before, if given."""
        before = since or Counts()
        return Counts(
            rewrapped=self.rewrapped - before.rewrapped, encrypted=self.encrypted - before.encrypted
        )

    @property
    def proven(self) -> int:
        """The number of objects in a final state: as desired, or given up on."""
        return self.current + self.plaintext + self.deleted + self.failed

    @property
    def all_as_desired(self) -> bool:
        """True if nothing failed and every object is in its desired state."""
        as_desired = self.current + self.plaintext + self.deleted
        return not self.failed and not self.noncurrent_stale and as_desired == self.objects

    def to_json(self) -> dict[str, int]:
        """Return the counts by name."""
        return {name: getattr(self, name) for name in COUNT_FIELDS}


COUNT_FIELDS: Final = tuple(Counts.model_fields)
"""The counts of SPEC 8.6, in its order."""
