"""The erasure of a project, as its keyring records it (SPEC 8.8). Pure.

While stores are asked whether the customer's keys are gone, the project is `erasing`: everything
waits. Once every store has said so, it is `erased`, for ever.
"""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, Self

from keyturn.identifiers import format_time, is_short_name, is_uuid, parse_time

ASKED_FOR: Final = timedelta(minutes=5)
"""How long stores are asked before an erasure is refused."""
HOLDS_FOR: Final = timedelta(minutes=15)
"""After this, an erasure that nobody continues holds nothing up any longer."""
FRESH_FOR: Final = timedelta(minutes=1)
"""How old the answers of stores may be when the project becomes erased."""

_ID: Final = re.compile(r"[0-9a-f]{16}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MAX_REASON: Final = 500


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

    def to_json(self) -> dict[str, Any]:
        """The fields of a keyring."""
        return {
            "request_id": self.request_id,
            "publisher": self.publisher,
            "request": self.request,
            "requested_at": self.requested_at,
            "began_at": self.began_at,
            "reason": self.reason,
            "proven_by": self.proven_by,
            "answers": {
                secret_id: {"state": answer.state.value, "at": answer.at}
                for secret_id, answer in self.answers.items()
            },
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read the fields of a keyring.

        Raises:
            ValueError, TypeError, KeyError: they are malformed.
        """
        if not is_uuid(fields["request_id"]) or not is_short_name(fields["publisher"]):
            raise ValueError("request")
        for digest in (fields["request"], fields["proven_by"] or fields["request"]):
            if _DIGEST.fullmatch(digest) is None:
                raise ValueError("digest")
        if not isinstance(fields["reason"], str) or len(fields["reason"]) > _MAX_REASON:
            raise ValueError("reason")
        for name in ("requested_at", "began_at"):
            parse_time(fields[name])
        return cls(
            **{name: fields[name] for name in _TEXTS},
            answers=_answers(fields["answers"]),
        )


_TEXTS: Final = (
    *("request_id", "publisher", "request", "requested_at", "began_at", "reason", "proven_by"),
)


def _answers(fields: Any) -> dict[str, StoreAnswer]:
    if not isinstance(fields, dict):
        raise TypeError("answers")
    return {_secret_id(name): _answer(each) for name, each in fields.items()}


def _secret_id(text: str) -> str:
    if _ID.fullmatch(text) is None:
        raise ValueError("secret id")
    return text


def _answer(fields: Mapping[str, Any]) -> StoreAnswer:
    parse_time(fields["at"])
    answer = StoreAnswer(KeyState(fields["state"]), fields["at"])
    if not answer.state.is_gone:
        raise ValueError("state")
    return answer
