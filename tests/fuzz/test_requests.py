"""20,000 mutated requests, and as many events (SPEC 6.3, 6.7, 12, 13); `make fuzz` tries more.

In separate processes, as `make fuzz` runs them: the memory that they report is only theirs,
and a seed that finds something finds it again by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyturn.messages import AUDIT_MODELS, EVENT_MODELS, WORKER_REPORT_MODELS
from keyturn.topology import REQUESTS
from tests.fuzz.process import fuzzed

if TYPE_CHECKING:
    from pathlib import Path

_SHARDS = 2
_A_SHARD = 12_000
# On a machine that is busy otherwise; about 10 s of CPU each.
pytestmark = pytest.mark.timeout(600)
_EVENTS = 20_000
# Codes that do not depend on the bucket.
_EXPECTED_CODES = {
    "malformed_request",
    "bad_signature",
    "not_permitted",
    "bad_seal",
    "unknown_intake_key",
    "already_enrolled",
    "generation_mismatch",
    "deleted_key",
}


@pytest.mark.parametrize("shard", range(_SHARDS))
def test_requests(tmp_path: Path, shard: int) -> None:
    """Each ends served, put off or dead with its code; none is slow; memory stays."""
    report = fuzzed(tmp_path, "--only", "requests", "--seed", str(shard), "--count", str(_A_SHARD))
    assert report.inputs == _A_SHARD
    # A delete waits, no recovery names the record that is there, and no broker has dead letters.
    unserved = ("dead_letters.requested", "delete.requested", "recover.requested")
    reached = {f"served {name}" for name in REQUESTS if name not in unserved}
    assert reached | _EXPECTED_CODES | {"put off waiting"} <= set(report.outcomes)
    served = sum(n for name, n in report.outcomes.items() if name.startswith("served"))
    assert served > _A_SHARD / 10


def test_events(tmp_path: Path) -> None:
    """A reader gets what was signed and what it knows, or nothing."""
    report = fuzzed(tmp_path, "--only", "events", "--seed", "1", "--count", str(_EVENTS))
    assert report.inputs == _EVENTS
    assert set(report.outcomes) == {
        "nothing",
        *EVENT_MODELS,
        *(f"a batch of {name}" for name in EVENT_MODELS),
        *AUDIT_MODELS,
        *WORKER_REPORT_MODELS,
    }
