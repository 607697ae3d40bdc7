"""The erasure of a project, as its keyring records it (SPEC 8.8). Pure.

While stores are asked whether the customer's keys are gone, the project is `erasing`: everything
waits. Once every store has said so, it is `erased`, for ever.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from keyturn.identifiers import format_time, parse_time

ASKED_FOR: Final = timedelta(minutes=5)
"""How long stores are asked before an erasure is refused."""
HOLDS_FOR: Final = timedelta(minutes=15)
"""After this, an erasure that nobody continues holds nothing up any longer."""
FRESH_FOR: Final = timedelta(minutes=1)
"""How old the answers of stores may be when the project becomes erased."""


class KeyState(enum.StrEnum):
    """What a store says of a customer key.

    Attributes:
        GIVEN: It gave the secret.
        DISABLED: The key is disabled.
        PENDING_DELETION: The key will be deleted; until then that can be canceled.
        MISSING: There is no such key.
        UNDECIDED: Access was denied, or the store did not answer: that says nothing of the key.
    """

    GIVEN = "given"
    DISABLED = "disabled"
    PENDING_DELETION = "pending_deletion"
    MISSING = "missing"
    UNDECIDED = "undecided"

    @property
    def is_gone(self) -> bool:
        """True if nobody gets the secret from the store."""
        return self in (KeyState.DISABLED, KeyState.PENDING_DELETION, KeyState.MISSING)


@dataclass(frozen=True, slots=True)
class StoreAnswer:
    """What a store said of a key, and when (UTC, RFC 3339)."""

    state: KeyState
    at: str


@dataclass(frozen=True, slots=True)
class Erasure:
    """A request to erase a project, and the answers of the stores, by the id of the secret.

    Without answers the project is being erased. `request` is the SHA-256 of the request's body;
    `began_at` is the storage's date. `proven_by` is the digest of the evidence that every wrap
    needs a customer secret, None if the project was enrolled with one and without objects.
    """

    request_id: str
    publisher: str
    request: str
    requested_at: str
    began_at: str
    reason: str
    proven_by: str | None
    answers: Mapping[str, StoreAnswer] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """True if the project is erased."""
        return bool(self.answers)

    @property
    def states(self) -> dict[str, KeyState]:
        """What the stores said, by the id of the secret."""
        return {secret_id: answer.state for secret_id, answer in self.answers.items()}

    def holds_at(self, now: datetime) -> bool:
        """Return True if the project may not be used at this time of the storage."""
        return self.is_done or self._has_begun_within(HOLDS_FOR, now)

    def is_over_at(self, now: datetime) -> bool:
        """Return True if the stores were asked for long enough."""
        return not self._has_begun_within(ASKED_FOR, now)

    def _has_begun_within(self, time: timedelta, now: datetime) -> bool:
        # One date of the storage may be wrong: one that lies ahead must not hold for longer.
        return abs(now - parse_time(self.began_at)) <= time

    def with_answers(self, states: Mapping[str, KeyState], now: datetime) -> "Erasure":
        """The erasure after all stores have answered."""
        at = format_time(now)
        answers = {secret_id: StoreAnswer(state, at) for secret_id, state in states.items()}
        return replace(self, answers=answers)
