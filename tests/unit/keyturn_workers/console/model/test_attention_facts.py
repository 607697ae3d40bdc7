"""How rules put things."""

from __future__ import annotations

from datetime import timedelta

import pytest

from keyturn_workers.console.model.attention_facts import (
    Facts,
    ago,
    count_of,
    listed,
    project_link,
    sweep_link,
)
from keyturn_workers.console.model.rows import Feed


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 seconds"), (119, "119 seconds"), (120, "2 minutes"), (7200, "2 hours"),
     (400 * 86400, "400 days")],
)  # fmt: skip
def test_a_length_of_time_in_words(seconds: int, text: str) -> None:
    assert ago(timedelta(seconds=seconds)) == text


def test_some_names_are_listed_and_the_others_counted() -> None:
    assert listed("abc") == "a, b, c"
    assert listed("abcdefg") == "a, b, c, d, e and 2 more"


def test_links_lead_to_pages() -> None:
    assert project_link("acme") == "/projects/acme"
    assert sweep_link("*", "1-2") == "/sweeps/_all/1-2"
    assert sweep_link("acme", "1-2") == "/sweeps/acme/1-2"


def test_numbers_have_their_noun() -> None:
    assert (count_of(1, "sweep"), count_of(2000, "sweep")) == ("1 sweep", "2,000 sweeps")


def test_the_broker_is_up_while_events_are_read() -> None:
    assert not Facts().is_broker_up
    assert Facts(feeds={"events": Feed("events", is_connected=True)}).is_broker_up
