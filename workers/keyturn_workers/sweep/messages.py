"""The messages between sweep workers (SPEC 8.5): hints, which are not signed and prove nothing.

The project's sealed record says what is to be done. A forged or stale hint finds nothing to do
there, or does work that had to be done anyway.
"""

from typing import Annotated, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from keyturn.errors import MalformedRequestError
from keyturn.messages import Project, RequestId, load_json, problems
from keyturn.topology import PLAN_QUEUE, SWEEP_QUEUE

_MAX: Final = 2**53 - 1
Number = Annotated[int, Field(ge=0, le=_MAX)]


class _Hint(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)


class SweepStep(_Hint):
    """Make this step of a project's record, or of the record of all projects (`*`)."""

    type: Literal["sweep.step"] = "sweep.step"
    project: Project | Literal["*"]
    step: Number


class SweepPage(_Hint):
    """Make an attempt at a page of a round; `attempt` is the number of attempts before it."""

    type: Literal["sweep.page"] = "sweep.page"
    project: Project
    round: RequestId
    page: Number
    attempt: Number


Hint = SweepStep | SweepPage
_ADAPTER: Final[TypeAdapter[Hint]] = TypeAdapter(Annotated[Hint, Field(discriminator="type")])


def queue_of(hint: Hint) -> str:
    """The queue on which a hint travels."""
    return PLAN_QUEUE if isinstance(hint, SweepStep) else SWEEP_QUEUE


def encode(hint: Hint) -> bytes:
    """The bytes of a hint."""
    return orjson.dumps(hint.model_dump(mode="json"))


def parse(body: bytes) -> Hint:
    """The hint in these bytes.

    Raises:
        MalformedRequestError: there is none.
    """
    try:
        return _ADAPTER.validate_python(load_json(body))
    except ValidationError as exc:
        raise MalformedRequestError(problems(exc)) from None
