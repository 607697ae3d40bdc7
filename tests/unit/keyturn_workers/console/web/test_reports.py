"""What pages ask control workers for while they are looked at (SPEC 16.1)."""

from __future__ import annotations

from keyturn.errors import PublisherError
from keyturn_workers.console.web.reports import MAX_UNDER_WAY, Reports


class Asked:
    def __init__(self, error: Exception | None = None) -> None:
        self.times = 0
        self._error = error

    async def __call__(self) -> None:
        self.times += 1
        if self._error is not None:
            raise self._error


async def test_a_report_is_asked_for_once_in_a_while() -> None:
    now = 0.0
    reports, asked = Reports(again_after_s=15, clock=lambda: now), Asked()
    reports.want(("sweep", "a"), asked)
    reports.want(("sweep", "a"), asked)
    reports.want(("sweep", "b"), asked)
    await reports.settled()
    assert asked.times == 2
    now = 15
    reports.want(("sweep", "a"), asked)
    await reports.settled()
    assert asked.times == 3


async def test_control_workers_that_are_away_are_no_error_of_the_page() -> None:
    reports, asked = Reports(), Asked(PublisherError("no answer"))
    reports.want(("sweep", "a"), asked)
    await reports.settled()
    assert asked.times == 1


async def test_only_so_many_are_asked_for_at_once() -> None:
    reports, asked = Reports(), Asked()
    for number in range(MAX_UNDER_WAY + 1):
        reports.want(("sweep", str(number)), asked)
    await reports.settled()
    assert asked.times == MAX_UNDER_WAY
    reports.want(("sweep", str(MAX_UNDER_WAY)), asked)
    await reports.settled()
    assert asked.times == MAX_UNDER_WAY + 1
