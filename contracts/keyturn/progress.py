"""The progress of a sweep or rotation, for events, reports and commands (SPEC 8.6). Pure.

A sweep first brings every object to the desired state, and then proves that each is still in it. An
observation earlier than two leases after the last change proves nothing (SPEC 8.4), so the second
half has an earliest end, which the record knows.
"""

import math
from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from keyturn.identifiers import TIME_PATTERN, parse_time

Phase = Literal["waiting", "rewrapping", "proving", "ended"]
"""The phase of a sweep.

| phase | the sweep |
| --- | --- |
| `waiting` | waits for a worker, or for the round under way to end |
| `rewrapping` | brings `done` of `total` objects to the desired state |
| `proving` | has proven `done` of `total`; the rest not before `proof_possible_at` |
| `ended` | has ended: clean, or not |
"""
KeyProblem = Literal["customer_key_refused", "customer_key_unavailable"]
"""The reason why a customer key gives no secret (SPEC 2.6)."""


def _check_time(text: str) -> str:
    parse_time(text)
    return text


WHY_WAIT: Final = "so that no late write can slip past"
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_Count = Annotated[int, Field(ge=0)]
_Time = Annotated[str, Field(pattern=TIME_PATTERN), AfterValidator(_check_time)]


class Progress(BaseModel):
    """How far it is, and the moments that it passed, by the storage's clock.

    Attributes:
        phase: Where it is.
        done: Objects done in this phase; of a sweep of all, projects that ended.
        total: Out of how many; absent until that is known.
        proof_possible_at: The earliest moment at which everything can be proven.
        first_rewrap_at: When the first object was changed.
        all_rewrapped_at: When the last object had been brought to the desired state.
        waits_for_key: Why the project's customer key, without which it does not go on, gives no
            secret (SPEC 8.5).
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", hide_input_in_errors=True)

    phase: Phase
    done: _Count = 0
    total: _Count | None = None
    proof_possible_at: _Time | None = None
    first_rewrap_at: _Time | None = None
    all_rewrapped_at: _Time | None = None
    waits_for_key: KeyProblem | None = None

    @property
    def fraction(self) -> float | None:
        """How much of the whole is done, from 0 to 1: one half is rewrapping, the other proving.

        None if the total is unknown.
        """
        if self.phase == "ended":
            return 1.0
        if self.phase == "waiting" or self.total is None:
            return None
        half = min(self.done / self.total, 1.0) / 2 if self.total else 0.5
        return half if self.phase == "rewrapping" else 0.5 + half

    def seconds_to_proof(self, now: datetime) -> float | None:
        """Return the seconds until everything can be proven; None once passed, or if unknown."""
        if self.phase in ("waiting", "ended") or self.proof_possible_at is None:
            return None
        left_s = (parse_time(self.proof_possible_at) - now).total_seconds()
        return left_s if left_s > 0 else None


def format_bytes(size_bytes: int) -> str:
    """Return the size in decimal units: `1.5 GB`."""
    power = min(len(_UNITS) - 1, (len(str(size_bytes)) - 1) // 3)
    return f"{size_bytes / 1000**power:.{min(power, 1)}f} {_UNITS[power]}"


def describe(progress: Progress, now: datetime) -> str:
    """Return the progress in a few words, such as `rewrapping 46 of 91`."""
    text: str = progress.phase
    of_total = "" if progress.total is None else f" of {progress.total}"
    if progress.phase in ("rewrapping", "proving"):
        text += f" {progress.done}{of_total}"
    if progress.waits_for_key is not None:
        return f"{text}, waiting for the customer key ({progress.waits_for_key})"
    seconds = progress.seconds_to_proof(now)
    if progress.phase != "proving" or seconds is None:
        return text
    state = f"proved {progress.done}{of_total}" if progress.done else "all rewrapped"
    return f"{state}; waiting {math.ceil(seconds)} s, {WHY_WAIT}"
