"""One request that a person made, and what became of it (SPEC 6.7, 16.2). Pure."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Literal

from keyturn.errors import (
    CodedError,
    KeyturnError,
    NotDeliveredError,
    OutcomeUnknownError,
    PublisherError,
)
from keyturn.messages import Event, Rejected

ActionKind = Literal["sweep", "rotation", "delete"]


class ActionState(StrEnum):
    """Where a request is.

    | state | what is known |
    | --- | --- |
    | `sending` | it is being published |
    | `published` | the broker has it; no worker has answered |
    | `accepted` | a worker has accepted it, or has done it |
    | `rejected` | a worker has refused it |
    | `not_sent` | it is on no queue; nothing happens |
    | `unknown` | the broker did not confirm it: it may be on its queue, or not |
    """

    SENDING = "sending"
    PUBLISHED = "published"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """What a sweep does beyond bringing wraps to the desired state (SPEC 6.6)."""

    master_key: str | None = None
    encrypt_plaintext: bool = False
    repair: bool = False


@dataclass(frozen=True, slots=True)
class Action:
    """A request that a person made by the console. It never holds a key.

    Attributes:
        request_id: The id of the request; of a sweep or rotation also that of its sweep.
        project: `*` for all.
        person: The name of the person, which the request names as its actor.
        options: Of a sweep.
        object_key: Of a delete.
        expected_generation: Of a rotation: the generation that it replaces.
        generation: Of a rotation that was accepted.
        code: Why it was refused.
        detail: The same for people; also why it was not sent, or why no answer can be read.
        is_waiting: Whether its answer is waited for.
        attempts: How often it was published, each time under the same id.
    """

    request_id: str
    kind: ActionKind
    project: str
    person: str
    at: datetime
    options: SweepOptions | None = None
    object_key: str | None = None
    expected_generation: int | None = None
    state: ActionState = ActionState.SENDING
    updated_at: datetime | None = None
    generation: int | None = None
    code: str | None = None
    detail: str = ""
    is_waiting: bool = False
    attempts: int = 1

    @property
    def is_final(self) -> bool:
        """Whether its answer is known."""
        return self.state in (ActionState.ACCEPTED, ActionState.REJECTED)

    @property
    def may_be_repeated(self) -> bool:
        """Whether publishing it again, under the same id, helps: it takes effect once."""
        return self.state in (ActionState.NOT_SENT, ActionState.UNKNOWN)


def repeated(action: Action, person: str, at: datetime) -> Action:
    """When it is published once more, under the same id."""
    # An attempt whose outcome is unknown stays so until one is confirmed.
    is_unsent = action.state is ActionState.NOT_SENT
    return replace(
        action,
        state=ActionState.SENDING if is_unsent else action.state,
        person=person,
        attempts=action.attempts + 1,
        updated_at=at,
    )


def published(action: Action, at: datetime) -> Action:
    """After the broker's confirmation; an answer may have been faster."""
    if action.is_final:
        return action
    return replace(action, state=ActionState.PUBLISHED, updated_at=at, code=None, detail="")


def failed_to_publish(action: Action, error: KeyturnError, at: datetime) -> Action:
    """After an attempt to publish that was not confirmed."""
    if action.is_final:
        return action
    detail = error.detail if isinstance(error, CodedError) else str(error)
    code = error.code if isinstance(error, CodedError) else None
    # Once an attempt may have reached a queue, the failure of a later one does not take it back.
    may_be_sent = action.state is ActionState.UNKNOWN or isinstance(error, OutcomeUnknownError)
    is_unsent = isinstance(error, CodedError | NotDeliveredError) and not may_be_sent
    state = ActionState.NOT_SENT if is_unsent else ActionState.UNKNOWN
    return replace(action, state=state, updated_at=at, code=code, detail=detail)


def answered(action: Action, event: Event, at: datetime) -> Action:
    """After an event of its request, whose signature was checked."""
    if isinstance(event, Rejected):
        return replace(
            action,
            state=ActionState.REJECTED,
            updated_at=at,
            code=event.code,
            detail=event.detail,
            is_waiting=False,
        )
    return replace(
        action,
        state=ActionState.ACCEPTED,
        updated_at=at,
        generation=getattr(event, "generation", None),
        code=None,
        detail="",
        is_waiting=False,
    )


def cannot_wait(action: Action, error: PublisherError, at: datetime) -> Action:
    """While the stream with the answer cannot be read."""
    return replace(action, updated_at=at, detail=f"its answer cannot be read: {error}")
