"""What no input may do: take long, grow the process, or make anything show a secret.

CPU time is the thread's own, so that a busy machine makes no finding; an input is slow only
where it is slow a second time.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from tests.fuzz.odd_values import CANARY
from tools.harness.canaries import encodings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_CPU_S: Final = 0.25
MAX_GROWTH_MIB: Final = 32
MAX_FINDINGS: Final = 20
_AT_ONCE: Final = 200
_MIB: Final = 2**20
ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / ".scratch" / "fuzz"


@dataclass(frozen=True)
class Finding:
    """Something that no input may do, and the file with the input that did it."""

    what: str
    file: str

    def __str__(self) -> str:
        return f"{self.what}\n    {self.file}"


@dataclass
class Report:
    """What came of one part: how many inputs, their outcomes by name, and what was found."""

    part: str
    seed: int
    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    slowest_ms: float = 0.0
    cpu_s: float = 0.0
    rss_mib: tuple[int, int] = (0, 0)

    def as_json(self) -> dict[str, Any]:
        """For another process to read."""
        return {**vars(self), "findings": [vars(found) for found in self.findings]}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Report:
        """The reverse of `as_json`."""
        findings = [Finding(**found) for found in fields["findings"]]
        outcomes = Counter(fields["outcomes"])
        return cls(**{**fields, "findings": findings, "outcomes": outcomes})


class Watch:
    """Keeps the report of one part."""

    def __init__(self, part: str, seed: int, secrets: Iterable[bytes] = ()) -> None:
        self.report = Report(part, seed)
        self._texts = [CANARY, *(text for value in secrets for text in encodings(value))]
        self._warm_mib = 0
        self._pending: list[tuple[str, Callable[[], bytes]]] = []

    @property
    def over(self) -> bool:
        """Whether enough was found to stop."""
        return len(self.report.findings) >= MAX_FINDINGS

    def outcome(self, name: str, cpu_s: float) -> None:
        """One input, and what came of it."""
        report = self.report
        report.inputs += 1
        report.outcomes[name] += 1
        report.cpu_s += cpu_s
        report.slowest_ms = max(report.slowest_ms, cpu_s * 1000)

    def found(self, what: str, data: bytes) -> None:
        """Note a finding, and keep its input."""
        folder = FOLDER / "findings"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{self.report.part}-{hashlib.sha256(data).hexdigest()[:16]}"
        (folder / name).write_bytes(data)
        self.report.findings.append(Finding(what, str((folder / name).relative_to(ROOT))))

    def check_text(self, text: str, data: Callable[[], bytes]) -> None:
        """A text that was logged or sent for this input: it must show no secret.

        Many are looked through at once.
        """
        self._pending.append((text, data))
        if len(self._pending) >= _AT_ONCE:
            self._look()

    def _look(self) -> None:
        together = "\n".join(text for text, _ in self._pending)
        for secret in self._texts:
            if secret in together:
                for text, data in self._pending:
                    if secret in text:
                        self.found(f"a secret is shown: {text[:300]}", data())
        self._pending.clear()

    def warmed_up(self) -> None:
        """From here on memory must not grow."""
        self._warm_mib = _rss_mib()

    def finish(self) -> Report:
        """The report, memory included."""
        self._look()
        if self._warm_mib:
            end_mib = _rss_mib()
            self.report.rss_mib = (self._warm_mib, end_mib)
            if end_mib - self._warm_mib > MAX_GROWTH_MIB:
                self.found(f"memory grew from {self._warm_mib} to {end_mib} MiB", b"")
        return self.report


class Clock:
    """CPU seconds of this thread."""

    def __init__(self) -> None:
        self._began = time.thread_time()

    def passed_s(self) -> float:
        return time.thread_time() - self._began


def _rss_mib() -> int:
    rss: int = psutil.Process().memory_info().rss
    return rss // _MIB
