"""What the feeds ask control workers for on behalf of a page."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from keyturn_workers.console.feeds import Feeds
from tests.unit.keyturn_workers.console.feeds.publishers import FakePublisher
from tests.unit.keyturn_workers.console.model.messages import failures_report, make_model, uid

if TYPE_CHECKING:
    from keyturn.messages import Event


async def test_failures_are_read_page_by_page_up_to_a_bound() -> None:
    def answer(asked: dict[str, Any]) -> Event:
        number = int(asked["after"] or 0)
        return failures_report(number, f"k{number}", after=asked["after"], next=str(number + 1))

    publisher, model = FakePublisher(answer), make_model()
    settings: Any = SimpleNamespace()
    await Feeds(settings, model, publisher).request_failures("acme", uid(4))
    assert [asked["after"] for asked in publisher.requests] == [None, "1", "2", "3", "4"]


async def test_a_page_that_is_looked_at_is_counted() -> None:
    settings: Any = SimpleNamespace()
    feeds = Feeds(settings, make_model(), FakePublisher(lambda _: None))
    with feeds.viewing(), feeds.viewing():
        assert feeds.viewers == 2
    assert feeds.viewers == 0
