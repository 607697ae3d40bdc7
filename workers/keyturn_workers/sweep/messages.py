"""The sweep's own messages (SPEC 8.5): hints, which prove nothing and are signed by nobody.

What a message asks for stands in the sweep's sealed record; a forged or stale one finds
there that nothing is to be done, or does work that was to be done anyway.
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

    sweep_id: RequestId
    project: Project | Literal["*"]


class SweepStep(_Hint):
    """Carry the sweep on by one step; `step` is the one that its record waits for."""

    type: Literal["sweep.step"] = "sweep.step"
    step: Number


class SweepPage(_Hint):
    """Do one page of the sweep; `take` counts how often it was done before."""

    type: Literal["sweep.page"] = "sweep.page"
    round: Number
    page: Number
    take: Number


Hint = SweepStep | SweepPage
_ADAPTER: Final[TypeAdapter[Hint]] = TypeAdapter(Annotated[Hint, Field(discriminator="type")])


def queue_of(hint: Hint) -> str:
    """The queue on which a hint travels."""
    return PLAN_QUEUE if isinstance(hint, SweepStep) else SWEEP_QUEUE


def encode(hint: Hint) -> bytes:
    """The bytes that are sent."""
    return orjson.dumps(hint.model_dump(mode="json"))


def parse(body: bytes) -> Hint:
    """The hint that these bytes are.

    Raises:
        MalformedRequestError: none of ours.
    """
    try:
        return _ADAPTER.validate_python(load_json(body))
    except ValidationError as exc:
        raise MalformedRequestError(problems(exc)) from None
