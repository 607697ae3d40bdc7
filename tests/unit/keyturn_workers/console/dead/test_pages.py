"""*Dead letters*: counted by code, filtered, one by one; nothing in them is trusted (SPEC 16.2)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from keyturn.topology import DEAD_QUEUES
from keyturn_workers.console.dead.index import DeadFilter, DeadIndex, QueueLetters
from keyturn_workers.console.dead.letter_reader import LetterDetails
from keyturn_workers.console.dead.pages import filter_words, row_keys
from keyturn_workers.console.dead.service import DetailsResult, Reading
from tests.unit.keyturn_workers.console.dead.letters import UPLOADS, indexed
from tests.unit.keyturn_workers.console.dead.pages import Pages, address
from tools.harness import hostile

_NOW = datetime(2026, 11, 26, tzinfo=UTC)


@pytest.fixture
def pages() -> Pages:
    return Pages()


def test_letters_are_counted_by_code_with_a_remedy_and_come_in_pages(pages: Pages) -> None:
    page = pages.get("/dead").text
    assert "1 to 100 of 136 letters" in page
    assert 'href="/dead?page=2"' in page
    assert 'href="/dead?queue=keyturn.upload.dead&amp;code=bad_seal"' in page
    assert "sealed bytes do not open" in page
    assert "no code was recorded" in page


def test_a_filter_stays_in_its_fields_and_in_what_is_done_to_all(pages: Pages) -> None:
    page = pages.get("/dead?queue=keyturn.upload&code=unknown_project&project=project-3").text
    assert '<option value="keyturn.upload.dead" selected>' in page
    assert "that match, 136 in all" in page
    assert '<input type="hidden" name="code" value="unknown_project">' in page
    assert "Replay all 15 that match" in page
    assert 'aria-sort="descending"' in page


def test_what_cannot_be_replayed_says_so_in_its_row(pages: Pages) -> None:
    page = pages.get("/dead?page=2").text
    for words in ("No body kept", "No request", "Expired"):
        assert words in page


def test_hostile_letters_are_text(pages: Pages) -> None:
    for path in ("/dead?page=2", f"/dead?text={hostile.SCRIPT}", "/dead?sort=x&page=-1&age=%00"):
        page = pages.get(path)
        assert page.status_code == 200
        assert "<script>" not in page.text.replace('<script src="/static/', "")
    assert "U+202E" in pages.get("/dead?page=2").text


def test_a_viewer_sees_no_button() -> None:
    page = Pages("view").get("/dead").text
    assert "Replay all" not in page
    assert 'type="checkbox"' not in page
    assert "/dead/read" not in page


def test_what_no_row_means(pages: Pages) -> None:
    assert "No letter matches" in pages.get("/dead?text=zzz").text
    pages.dead.index = DeadIndex()
    assert "have not been read yet" in pages.get("/dead").text
    pages.dead.index = DeadIndex([QueueLetters(queue, (), 0, _NOW) for queue in DEAD_QUEUES])
    assert "No dead letters" in pages.get("/dead").text


def test_a_page_says_how_its_letters_were_read(pages: Pages) -> None:
    pages.dead.reading = Reading(UPLOADS)
    assert "the queue looks empty to other readers" in pages.get("/dead").text
    pages.dead.reading = Reading(None, "another command is reading", _NOW)
    page = pages.get("/dead").text
    assert "another command is reading" in page
    assert "The letters shown are as of" in page
    pages.dead.reading = Reading()
    pages.dead.index = pages.dead.index.with_queue(QueueLetters(UPLOADS, (indexed(1),), 9, _NOW))
    assert "Not all letters are shown" in pages.get("/dead").text


def test_a_letters_page_shows_all_that_may_be_shown(pages: Pages) -> None:
    letter = pages.letter("bad_seal")
    details = LetterDetails(
        letter, 2, (("content type", hostile.SCRIPT),), '{"a": "\u202e"}', '{"b": 1}', _NOW
    )
    pages.know(letter, DetailsResult(details, "", 0))
    page = pages.get(address(letter)).text
    for words in ("publish again", "goes back to <code>keyturn.upload</code>", "2 identical"):
        assert words in page
    assert "U+202E" in page
    assert hostile.SCRIPT not in page
    assert 'name="move" value="replay"' in page


@pytest.mark.parametrize(
    ("code", "words"),
    [("request_expired", "--resign"), ("already_exists", "body was not kept")],
)
def test_a_letter_that_cannot_be_replayed_has_no_button_for_it(
    pages: Pages, code: str, words: str
) -> None:
    letter = pages.letter(code)
    pages.know(letter, DetailsResult(None, "locked", 0))
    page = pages.get(address(letter)).text
    assert words in page
    assert 'value="replay"' not in page
    assert 'value="discard"' in page


def test_a_letter_that_cannot_be_read_or_is_gone_says_so(pages: Pages) -> None:
    letter = pages.letter("bad_seal")
    pages.know(letter, DetailsResult(None, "another command is reading", 0))
    page = pages.get(address(letter))
    assert "another command is reading" in page.text
    assert page.status_code == 200
    pages.know(letter, DetailsResult(None, "", 0))
    gone = pages.get(address(letter))
    assert (gone.status_code, "This letter is gone" in gone.text) == (404, True)
    assert 'value="discard"' not in gone.text


def test_a_letter_that_is_still_read_appears_by_itself(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyturn_workers.console.dead.pages._DETAILS_WAIT_S", 0.01)
    page = pages.get(address(pages.letter("bad_seal"))).text
    assert "being read from the queue" in page
    assert "/events?topics=dead" in page


@pytest.mark.parametrize(
    "path", ["/dead/keyturn.upload.dead/x", "/dead/keyturn.upload/h-0000000000000001"]
)
def test_an_address_of_no_letter_is_not_found(pages: Pages, path: str) -> None:
    assert pages.get(path).status_code == 404


def test_a_row_keeps_its_id_when_others_come_and_identical_letters_have_their_own() -> None:
    """A page that refreshes itself keeps what was ticked by the ids."""
    first, second = indexed(1), indexed(2)
    before, after = row_keys([first, first]), row_keys([second, first, first])
    assert before == after[1:]
    assert len(set(after)) == 3


def test_a_filter_is_described_in_words() -> None:
    assert filter_words(DeadFilter()) == "all of all queues"
    wanted = DeadFilter(queue=UPLOADS, code="bad_seal", age="over_day")
    assert filter_words(wanted) == (
        "all with queue: keyturn.upload.dead, code: bad_seal, age: older than a day"
    )
