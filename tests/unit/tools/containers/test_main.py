"""Where it cannot run: one line with the reason, and an exit status that says whether it had to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools.containers import __main__ as program
from tools.containers.engine import CannotRunError

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has no engine, and can start none."""

    def refuse(_tests: Sequence[str]) -> None:
        raise CannotRunError("no Docker engine, and starting one needs root")

    monkeypatch.setattr(program, "run", refuse)
    monkeypatch.delenv(program.REQUIRE, raising=False)


def test_a_machine_that_cannot_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["image"]) == 0
    line = "image-test skipped: no Docker engine, and starting one needs root\n"
    assert capsys.readouterr().out == line


@pytest.mark.parametrize("required", ["--require", "environment"])
def test_unless_it_is_required(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, required: str
) -> None:
    arguments = ["image", "compose"]
    if required == "--require":
        arguments.append("--require")
    else:
        monkeypatch.setenv(program.REQUIRE, "1")
    assert program.main(arguments) == 1
    assert capsys.readouterr().out.startswith("image-test and compose-test cannot run: ")
