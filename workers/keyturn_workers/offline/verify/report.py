"""The counts, the findings and the verdict of a project's check (SPEC 15.2). Pure.

With the key in use every wrap must open. With a key that is gone no wrap may open: then an object
that opens, or cannot be decided, is a finding. Content that Keyturn does not write is a finding in
either case. A check that tried nothing proves nothing.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from keyturn_workers.offline.verify.object_check import Kind, ObjectCheck, State

Expectation = Literal["opens", "gone"]

_Group = tuple[Kind, State, bool]


@dataclass(frozen=True, slots=True)
class Finding:
    """An object, or a noncurrent version, that contradicts the expectation."""

    s3_key: str
    version: str | None
    kind: Kind
    state: State
    code: str | None
    detail: str


@dataclass(slots=True)
class VerifyReport:
    """The outcomes so far. Memory is bounded: only the first `max_findings` are kept.

    `expectation` must hold for every wrap. If `allow_plaintext`, an object that is not encrypted is
    no finding. `found` counts all findings. `secret_ids` are the customer secrets that the project
    is known to have had, and `given_secret_ids` those that the key was tried with. If
    it `may_lack_secret_ids`, nothing shows that these are all.
    """

    expectation: Expectation = "opens"
    allow_plaintext: bool = False
    max_findings: int = 10_000
    findings: list[Finding] = field(default_factory=list)
    found: int = 0
    secret_ids: set[str] = field(default_factory=set)
    given_secret_ids: frozenset[str] = frozenset()
    may_lack_secret_ids: bool = False
    _groups: Counter[_Group] = field(default_factory=Counter)

    def add(self, s3_key: str, version: str | None, check: ObjectCheck) -> None:
        """Count one outcome; `version` is None for the current one."""
        self._groups[check.kind, check.state, version is None] += 1
        if not self._contradicts(check):
            return
        self.found += 1
        if len(self.findings) < self.max_findings:
            self.findings.append(Finding(s3_key, version, **asdict(check)))

    def _contradicts(self, check: ObjectCheck) -> bool:
        if self.expectation == "gone":
            return check.state in ("opened", "failed")
        if (check.kind, check.state) == ("plaintext", "unchecked"):
            return not self.allow_plaintext
        return check.state in ("closed", "failed")

    @property
    def counts(self) -> dict[str, int]:
        """The number of each outcome; noncurrent versions are counted separately."""
        return {
            "objects": self._count(current=True),
            "opened": self._count(state="opened", current=True),
            "closed": self._count(state="closed", current=True),
            "failed": self._count(state="failed", current=True),
            "plaintext": self._count(kind="plaintext", current=True),
            "tombstones": self._count(kind="tombstone", current=True),
            "foreign": self._count(kind="foreign", current=True),
            "noncurrent": self._count(current=False),
            "noncurrent_opened": self._count(state="opened", current=False),
            "noncurrent_closed": self._count(state="closed", current=False),
            "noncurrent_failed": self._count(state="failed", current=False),
            "noncurrent_plaintext": self._count(kind="plaintext", current=False),
        }

    def _count(self, *, current: bool, kind: Kind | None = None, state: State | None = None) -> int:
        return sum(
            number
            for (of_kind, of_state, is_current), number in self._groups.items()
            if is_current == current and kind in (None, of_kind) and state in (None, of_state)
        )

    @property
    def tried(self) -> int:
        """The number of wraps and tombstones that were decided, noncurrent ones included."""
        return sum(n for (_, state, _), n in self._groups.items() if state in ("opened", "closed"))

    @property
    def opened(self) -> int:
        """The number of those that opened, noncurrent ones included."""
        return sum(n for (_, state, _), n in self._groups.items() if state == "opened")

    @property
    def missing_secret_ids(self) -> list[str]:
        """The customer secrets without which nothing shows that a key is gone."""
        needed = self.secret_ids - self.given_secret_ids if self.expectation == "gone" else set()
        return sorted(needed)

    @property
    def verified(self) -> bool:
        """True if something was tried, nothing contradicts the expectation, and all is decided."""
        return self.tried > 0 and self.found == 0 and self._all_decided

    @property
    def _all_decided(self) -> bool:
        return not self.missing_secret_ids and not self.may_lack_secret_ids

    @property
    def verdict(self) -> str:
        """The result in one line."""
        if not self._groups:
            return "nothing was verified: the project has no objects"
        if not self.tried and not self.found:
            return "nothing was verified: no wrap of the project could be tried"
        return self._gone_verdict() if self.expectation == "gone" else self._opens_verdict()

    def _gone_verdict(self) -> str:
        if self.verified:
            return f"the key opens none of {_wraps(self.tried)}"
        if self.found == 0 and not self.missing_secret_ids:
            return (
                "undecided: no evidence in the bucket says which customer keys the project had: "
                "name their secrets (--customer-secret-id), or confirm that it never had one "
                "(--no-customer-key)"
            )
        if self.found == 0:
            return (
                "undecided: with a customer secret that was not given, the key may open wraps: "
                + ", ".join(self.missing_secret_ids)
            )
        others = self.found - self.opened
        return (
            f"not verified that the key is gone: it opens {self.opened} of {_wraps(self.tried)}; "
            f"{others} other finding{'s' * (others != 1)}"
        )

    def _opens_verdict(self) -> str:
        if self.verified:
            return f"the key opens all of {_wraps(self.tried)}"
        if self.tried and not self.opened:
            return "the key opens nothing; it may be an old key, or another project's"
        listed = sum(self._groups.values())
        return f"not verified: {self.found} of {listed} objects do not open, or are not encrypted"

    def document(self) -> dict[str, Any]:
        """Return the report for `--json`, the findings in the order of their S3 keys."""
        ordered = sorted(self.findings, key=lambda found: (found.s3_key, found.version or ""))
        return {
            "expectation": self.expectation,
            "verified": self.verified,
            "verdict": self.verdict,
            "counts": self.counts,
            "missing_customer_secrets": self.missing_secret_ids,
            "findings": [asdict(finding) for finding in ordered],
            "findings_omitted": self.found - len(self.findings),
        }


def _wraps(number: int) -> str:
    return "1 wrap" if number == 1 else f"{number} wraps"
