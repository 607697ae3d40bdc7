"""Counts and the verdict: what tried nothing proves nothing."""

from __future__ import annotations

import pytest

from keyturn_workers.verify import Expectation, Finding, ObjectCheck, Report

OPENED = ObjectCheck("encrypted", "opened")
CLOSED = ObjectCheck("encrypted", "closed", "no_usable_wrap", "no")
CORRUPT = ObjectCheck("encrypted", "failed", "corrupt_object", "bad")
PLAINTEXT = ObjectCheck("plaintext", "unchecked")
TOMBSTONE = ObjectCheck("tombstone", "unchecked")
FOREIGN = ObjectCheck("foreign", "unchecked")
V0 = ObjectCheck("v0", "opened")
SUSPICIOUS = ObjectCheck("plaintext", "failed", "corrupt_object", "an unknown name")


def _report(
    expectation: Expectation, *checks: ObjectCheck, allow_plaintext: bool = False
) -> Report:
    report = Report(expectation, allow_plaintext)
    for number, check in enumerate(checks):
        report.add(f"acme/{number}", None, check)
    return report


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ((OPENED, OPENED, TOMBSTONE, FOREIGN, V0), "the key opens all of 3 wraps"),
        ((OPENED,), "the key opens all of 1 wrap"),
    ],
)
def test_a_key_that_opens_all_is_verified(checks: tuple[ObjectCheck, ...], verdict: str) -> None:
    report = _report("opens", *checks)
    assert (report.verified, report.verdict) == (True, verdict)


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ((), "nothing was verified: the project has no objects"),
        ((TOMBSTONE, FOREIGN), "nothing was verified: no wrap"),
        ((OPENED, CLOSED), "not verified: 1 of 2 objects"),
        ((OPENED, CORRUPT), "not verified: 1 of 2 objects"),
        ((OPENED, PLAINTEXT), "not verified: 1 of 2 objects"),
        ((CLOSED, CLOSED, TOMBSTONE), "the key opens nothing"),
    ],
)
def test_a_key_that_opens_less_is_not(checks: tuple[ObjectCheck, ...], verdict: str) -> None:
    report = _report("opens", *checks)
    assert not report.verified
    assert report.verdict.startswith(verdict)


def test_plaintext_is_accepted_if_asked_for() -> None:
    report = _report("opens", OPENED, PLAINTEXT, allow_plaintext=True)
    assert report.verified
    assert not _report("opens", PLAINTEXT, allow_plaintext=True).verified


def test_a_key_that_opens_none_is_gone() -> None:
    report = _report("gone", CLOSED, CLOSED, PLAINTEXT, TOMBSTONE, FOREIGN)
    assert (report.verified, report.verdict) == (True, "the key opens none of 2 wraps")


@pytest.mark.parametrize("last", [OPENED, V0, CORRUPT, ObjectCheck("unreadable", "failed")])
def test_a_key_that_opens_one_or_may_is_not_gone(last: ObjectCheck) -> None:
    report = _report("gone", CLOSED, last)
    assert not report.verified
    assert report.verdict.startswith("not verified that the key is gone")
    assert [finding.s3_key for finding in report.findings] == ["acme/1"]


@pytest.mark.parametrize(("expectation", "good"), [("opens", OPENED), ("gone", CLOSED)])
def test_what_keyturn_does_not_write_is_a_finding_in_either_case(
    expectation: Expectation, good: ObjectCheck
) -> None:
    report = _report(expectation, good, SUSPICIOUS, allow_plaintext=True)
    assert not report.verified
    assert [finding.s3_key for finding in report.findings] == ["acme/1"]


def test_the_verdict_counts_what_opens_and_what_else_was_found() -> None:
    reports = [_report("gone", CLOSED, OPENED, *[CORRUPT] * others) for others in range(3)]
    assert [report.verdict.partition("gone: ")[2] for report in reports] == [
        "it opens 1 of 2 wraps; 0 other findings",
        "it opens 1 of 2 wraps; 1 other finding",
        "it opens 1 of 2 wraps; 2 other findings",
    ]


@pytest.mark.parametrize("checks", [(), (PLAINTEXT, TOMBSTONE, FOREIGN)])
def test_a_key_that_was_never_tried_is_not_gone(checks: tuple[ObjectCheck, ...]) -> None:
    """A project's name with a typing error would otherwise show every key to be gone."""
    report = _report("gone", *checks)
    assert not report.verified
    assert report.verdict.startswith("nothing was verified")


@pytest.mark.parametrize(("expectation", "bad"), [("opens", CLOSED), ("gone", OPENED)])
def test_noncurrent_versions_count_for_the_verdict(
    expectation: Expectation, bad: ObjectCheck
) -> None:
    good = OPENED if expectation == "opens" else CLOSED
    report = _report(expectation, good)
    report.add("acme/0", "v1", bad)
    assert not report.verified
    assert report.findings == [
        Finding("acme/0", "v1", "encrypted", bad.state, bad.code, bad.detail)
    ]


def test_the_counts_keep_noncurrent_versions_apart() -> None:
    report = _report("opens", OPENED, V0, CLOSED, CORRUPT, PLAINTEXT, TOMBSTONE, FOREIGN)
    for check in (OPENED, CLOSED, CORRUPT, PLAINTEXT):
        report.add("acme/0", "v1", check)
    assert report.counts == {
        "objects": 7,
        "opened": 2,
        "closed": 1,
        "failed": 1,
        "v0_bodies": 1,
        "plaintext": 1,
        "tombstones": 1,
        "foreign": 1,
        "noncurrent": 4,
        "noncurrent_opened": 1,
        "noncurrent_closed": 1,
        "noncurrent_failed": 1,
        "noncurrent_plaintext": 1,
    }


def test_all_findings_count_and_few_are_kept() -> None:
    report = Report(max_findings=2)
    for name in ("c", "a", "b"):
        report.add(f"acme/{name}", None, CLOSED)
    document = report.document()
    assert [finding["s3_key"] for finding in document["findings"]] == ["acme/a", "acme/c"]
    assert document["findings_omitted"] == 1
    assert document["counts"]["closed"] == 3
    assert document["verified"] is False
