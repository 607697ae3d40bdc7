"""What the feeds ask control workers for on behalf of a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keyturn_workers.console.feeds import Feeds
from tests.unit.keyturn_workers.console.feeds.publishers import FakePublisher
from tests.unit.keyturn_workers.console.feeds.streams import KEY
from tests.unit.keyturn_workers.console.model.messages import (
    CONSOLE,
    failures_report,
    make_model,
    uid,
)

if TYPE_CHECKING:
    from keyturn.crypto import VerifyKey
    from keyturn.messages import Event


_NOWHERE = "amqp://127.0.0.1:1"


@dataclass(frozen=True)
class Settings:
    deployment: str = "test"
    publisher_name: str = CONSOLE
    event_public_key: tuple[VerifyKey, ...] = (KEY.verify_key(),)
    console_history_s: int = 3600
    console_refresh_s: float = 300


async def test_failures_are_read_page_by_page_up_to_a_bound() -> None:
    def answer(asked: dict[str, Any]) -> Event:
        number = int(asked["after"] or 0)
        return failures_report(number, f"k{number}", after=asked["after"], next=str(number + 1))

    publisher, model = FakePublisher(answer), make_model()
    await Feeds(Settings(), model, publisher, _NOWHERE).request_failures("acme", uid(4))
    assert [asked["after"] for asked in publisher.requests] == [None, "1", "2", "3", "4"]


async def test_a_page_that_is_looked_at_is_counted() -> None:
    feeds = Feeds(Settings(), make_model(), FakePublisher(lambda _: None), _NOWHERE)
    with feeds.viewing(), feeds.viewing():
        assert feeds.viewers == 2
    assert feeds.viewers == 0
