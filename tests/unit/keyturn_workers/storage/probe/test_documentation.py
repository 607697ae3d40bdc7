"""docs/operations/storage-servers.md has the rows of the probe, and a valid policy (SPEC 10)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from keyturn_workers.storage.probe.runner import probe
from tools.harness.memory_storage import MemoryStorage

TEXT = (Path(__file__).parents[5] / "docs" / "operations" / "storage-servers.md").read_text()


async def test_every_check_is_documented() -> None:
    """With its level, and whether it runs when a worker starts."""
    report = await probe(MemoryStorage())
    quick = {row.name for row in (await probe(MemoryStorage(), quick=True)).rows}
    for row in report.rows:
        start = " yes " if row.name in quick else " "
        assert f"| {row.name} | {row.needed} |{start}|" in TEXT


def test_the_policy_is_valid() -> None:
    """Valid JSON, in which only workers write outside of staging."""
    (policy,) = re.findall(r"```json\n(.*?)```", TEXT, flags=re.DOTALL)
    statements: list[dict[str, Any]] = json.loads(policy)["Statement"]
    for statement in statements:
        writes = "s3:PutObject" in statement["Action"]
        if statement["Effect"] == "Allow" and writes:
            worker = statement["Principal"]["AWS"].endswith("/keyturn-worker")
            assert worker or "/.keyturn/staging/" in statement["Resource"]
    denied = next(s for s in statements if s["Effect"] == "Deny")
    assert denied["NotResource"].endswith("/.keyturn/staging/*")
