"""An engine whose `docker` answers from a table."""

from __future__ import annotations

import subprocess
from typing import Any

from tools.containers.engine import Engine


class FakeEngine(Engine):
    """Answers by the first words of a command; everything else fails with `reason`."""

    answers: dict[str, str]
    reason: str
    commands: list[tuple[str, ...]]

    def __init__(self, answers: dict[str, str] | None = None, *, reason: str = "no such") -> None:
        super().__init__({}, is_private=False)
        for name, value in (("answers", answers or {}), ("reason", reason), ("commands", [])):
            object.__setattr__(self, name, value)

    def attempt(self, *arguments: str, **_options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(arguments)
        line = " ".join(arguments)
        for begin, answer in self.answers.items():
            if line.startswith(begin):
                return subprocess.CompletedProcess(arguments, 0, answer, "")
        return subprocess.CompletedProcess(arguments, 1, "", f"{self.reason}\n")
