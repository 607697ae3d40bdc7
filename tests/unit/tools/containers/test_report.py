"""One line a check, and their number."""

from __future__ import annotations

import pytest

from tools.containers.container import CheckFailedError, Report, require


def test_checks_are_counted_and_a_failure_is_not_swallowed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = Report("image-test")
    with report.check("a first thing") as seen:
        seen += ["one", "two"]
    with pytest.raises(CheckFailedError, match="seen"), report.check("a second thing"):
        require(condition=False, seen="seen")
    report.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("a first thing: one, two")
    assert lines[1] == "FAILED  a second thing"
    assert lines[-1] == "image-test: 1 passed, 1 failed"
