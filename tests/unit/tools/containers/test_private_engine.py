"""What a private engine leaves: nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.containers.engine import remove_cgroups

if TYPE_CHECKING:
    from pathlib import Path


def test_control_groups_are_removed_from_the_deepest_on(tmp_path: Path) -> None:
    (tmp_path / "run" / "container" / "inner").mkdir(parents=True)
    remove_cgroups(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    remove_cgroups(tmp_path / "run")
