"""The hints between sweep workers (SPEC 8.5)."""

from __future__ import annotations

import pytest

from keyturn.errors import MalformedRequestError
from keyturn.topology import PLAN_QUEUE, SWEEP_QUEUE
from keyturn_workers.sweep.messages import Hint, SweepPage, SweepStep, encode, parse, queue_of

ROUND_ID = "2f6c9a0e-3333-4333-8333-333333333333"
STEP = SweepStep(project="acme", step=4)
PAGE = SweepPage(project="acme", round=ROUND_ID, page=2, attempt=1)


@pytest.mark.parametrize(
    ("hint", "queue"),
    [
        (STEP, PLAN_QUEUE),
        (PAGE, SWEEP_QUEUE),
        (STEP.model_copy(update={"project": "*"}), PLAN_QUEUE),
    ],
)
def test_a_hint_is_read_as_it_was_written(hint: Hint, queue: str) -> None:
    assert parse(encode(hint)) == hint
    assert queue_of(hint) == queue


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        encode(STEP).replace(b"sweep.step", b"sweep.other"),
        encode(STEP).replace(b"4", b"-4"),
        encode(STEP).replace(b'"acme"', b'"../acme"'),
        encode(PAGE).replace(b'"acme"', b'"*"'),
        encode(PAGE).replace(ROUND_ID.encode(), b"../../keyrings"),
        encode(PAGE).replace(b'"attempt":1', b'"attempt":"1"'),
        encode(PAGE).replace(b'"attempt":1', b'"attempt":1,"more":1'),
    ],
)
def test_anything_else_is_no_hint(body: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        parse(body)
