"""What people do by forms: confirmed where it matters, published once, refused in words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from keyturn.crypto import check_api_key
from keyturn.errors import BrokerUnavailableError, OutcomeUnknownError
from keyturn.messages import CodeCount, ProjectStatus
from keyturn_workers.console.actions import ActionState
from tests.unit.keyturn_workers.cli.fakes import event
from tests.unit.keyturn_workers.console.scene import Scene, lived, words_of
from tools.harness.console_data import HOSTILE_KEY, UPLOAD_DEAD, digest, made_up_id

_SWEEP = "/sweeps/new"
_DELETE = "/projects/acme/delete"
_ROTATE = "/projects/acme/rotate"
_MAKE = f"{_ROTATE}/key"
_CONFIRM = f"/dead/confirm?queue={UPLOAD_DEAD}&code=bad_seal&move="


@pytest.fixture
def console() -> Any:
    scene = lived()
    with scene.browser:
        yield scene


def _start(console: Scene, status: int = 303, **fields: str) -> Any:
    return console.post(_SWEEP, status, form=console.token(console.get(_SWEEP), _SWEEP), **fields)


def test_a_sweep_of_one_project_starts_at_once_and_only_once(console: Scene) -> None:
    token = console.token(console.get(_SWEEP), _SWEEP)
    response = console.post(_SWEEP, form=token, scope="project", project=" acme ", master_key="")
    ((kind, sent),) = console.sent
    assert (kind, sent["project"], sent["actor"]) == ("sweep", "acme", "kim")
    assert (sent["master_key"], sent["encrypt_plaintext"], sent["repair"]) == (None, False, False)
    location = response.headers["location"]
    assert location == f"/sweeps/acme/{sent['request_id']}"
    assert "Published, no response yet" in console.words(location)
    again = console.post(_SWEEP, form=token, scope="project", project="acme")
    assert again.headers["location"] == location
    assert len(console.sent) == 1


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"scope": "project", "project": HOSTILE_KEY}, "Not a project"),
        ({"scope": "project"}, "Not a project"),
        ({"project": "acme"}, "Choose a project"),
        ({"scope": "all", "master_key": "m9", "typed": "all projects"}, "do not hold"),
    ],
)
def test_what_is_malformed_is_said_at_its_field_and_not_sent(
    console: Scene, fields: dict[str, str], problem: str
) -> None:
    page = _start(console, 422, **fields).text
    assert re.search(rf'class="problem">[^<]*{problem}', page)
    assert "<script>window" not in page
    assert not console.sent


def test_the_form_of_a_sweep_can_be_filled_by_a_link(console: Scene) -> None:
    page = console.get("/sweeps/new?scope=all&master_key=m2&encrypt_plaintext=yes")
    assert 'value="m2" selected' in page
    assert 'value="all" checked' in page
    assert 'name="encrypt_plaintext" type="checkbox" value="yes" checked' in page


@pytest.mark.parametrize(
    ("fields", "sent_as", "phrase", "words"),
    [
        ({"encrypt_plaintext": "yes"}, {"encrypt_plaintext": True}, "acme", "cannot be undone"),
        ({"repair": "yes"}, {"repair": True}, "acme", "under earlier keys"),
        ({"master_key": "m2"}, {"master_key": "m2"}, "acme", "again under the master key"),
        ({"scope": "all"}, {"project": "*"}, "all projects", "all projects"),
    ],
)
def test_a_sweep_that_cannot_be_undone_is_typed(
    console: Scene, fields: dict[str, str], sent_as: dict[str, Any], phrase: str, words: str
) -> None:
    fields = {"scope": "project", "project": "acme"} | fields
    page = _start(console, 200, **fields).text
    assert words in page
    hidden: dict[str, Any] = console.fields(page, _SWEEP)
    assert {name: hidden[name] for name in fields} == fields
    del hidden["typed"]
    for typed in ("", "zoo", phrase.upper()):
        refused = console.post(_SWEEP, 422, **hidden, typed=typed).text
        assert f"Type “{phrase}”" in refused
    assert not console.sent
    console.post(_SWEEP, 303, **hidden, typed=phrase)
    ((_, sent),) = console.sent
    assert sent_as.items() <= sent.items()
    # The form that was confirmed, and the one before it, are one request.
    console.post(_SWEEP, 303, form=hidden["form"], **dict[str, Any](fields))
    assert len(console.sent) == 1


@pytest.mark.parametrize("key", ["reports/q3.pdf", " a ", HOSTILE_KEY, "ä/" * 100 + "x"])
def test_an_object_key_that_was_typed_twice_is_deleted_once(console: Scene, key: str) -> None:
    token = console.token(console.get(_DELETE), _DELETE)
    first = console.post(_DELETE, form=token, key=key, typed=key)
    console.post(_DELETE, form=token, key="other", typed="other")
    ((kind, sent),) = console.sent
    assert (kind, sent["project"], sent["key"], sent["actor"]) == ("delete", "acme", key, "kim")
    page = console.get(first.headers["location"])
    assert "<script>window" not in page
    assert sent["request_id"] in page


@pytest.mark.parametrize(
    ("key", "typed", "problem"),
    [
        ("a", "b", "not the same key"),
        ("a", "a ", "not the same key"),
        ("", "", "Not an object key"),
        ("a" * 901, "a" * 901, "Not an object key"),
        ("a\x00b", "a\x00b", "Not an object key"),
    ],
)
def test_anything_else_deletes_nothing(console: Scene, key: str, typed: str, problem: str) -> None:
    token = console.token(console.get(_DELETE), _DELETE)
    page = console.post(_DELETE, 422, form=token, key=key, typed=typed).text
    assert re.search(rf'class="problem">[^<]*{problem}', page)
    assert not console.sent


def test_a_link_may_name_an_object_key_but_not_confirm_it(console: Scene) -> None:
    page = console.get(f"{_DELETE}?key=a%22%3E%3Cscript%3E&typed=x")
    assert 'value="a&#34;&gt;&lt;script&gt;"' in page
    assert 'value="x"' not in page


def _delete(console: Scene) -> str:
    token = console.token(console.get(_DELETE), _DELETE)
    location: str = console.post(_DELETE, form=token, key="a", typed="a").headers["location"]
    return location


def test_a_refusal_names_the_grant_that_is_missing(console: Scene) -> None:
    location = _delete(console)
    request_id = location.rpartition("/")[2]
    detail = "console may not send delete.requested for this project"
    refusal: dict[str, Any] = {"project": None, "code": "not_permitted", "detail": detail}
    console.answer(request_id, event("delete.rejected", request_id=request_id, **refusal))
    page = console.words(location)
    for words in ("Refused: not_permitted", "delete.requested", "KEYTURN_PUBLISHERS"):
        assert words in page


def test_an_answer_ends_the_asking_of_its_page(console: Scene) -> None:
    path = _delete(console)
    assert "data-refresh" in console.get(path)
    assert "two leases, usually about half a minute" in console.words(path)
    request_id = path.rpartition("/")[2]
    console.answer(request_id, event("object.deleted", request_id=request_id, key="a"))
    page = console.get(path)
    assert "can never be used again" in page
    assert "data-refresh" not in page


def test_what_was_not_sent_can_be_sent_again(console: Scene) -> None:
    console.publisher.publish_errors.append(BrokerUnavailableError("connection refused"))
    path = _delete(console)
    page = console.words(path)
    assert "Not sent" in page
    assert "connection refused" in page
    console.sign_in("kim", "view")
    assert "Send again" not in console.get(path)
    console.post(f"{path}/repeat", 403)
    console.sign_in("lee", "operate")
    assert console.post(f"{path}/repeat").headers["location"] == path
    ((_, sent),) = console.sent
    assert (sent["request_id"], sent["actor"]) == (path.rpartition("/")[2], "lee")
    assert "2 times, under one id" in console.words(path)


def test_a_request_of_an_earlier_run_is_looked_for_in_the_audit_trail(console: Scene) -> None:
    unknown = made_up_id("unknown")
    assert f"/audit?text={unknown}" in console.get(f"/actions/{unknown}", 404)
    console.post(f"/actions/{unknown}/repeat", 404)
    console.get("/actions/nothing", 404)


def _make(console: Scene, token: str | None = None) -> tuple[str, str]:
    """The page with a fresh key, and the key."""
    token = token or console.token(console.get(_ROTATE), _MAKE)
    page = console.post(_MAKE, 200, form=token).text
    found = re.search(r'<pre class="secret"[^>]*>([^<]*)</pre>', page)
    assert found is not None
    return page, check_api_key(found[1])


def test_a_key_is_published_once_after_it_was_shown_and_confirmed(console: Scene) -> None:
    page, key = _make(console)
    confirmed: dict[str, Any] = {
        "form": console.token(page, _ROTATE),
        "saved": "yes",
        "typed": "acme",
    }
    first = console.post(_ROTATE, **confirmed)
    second = console.post(_ROTATE, **confirmed)
    ((kind, sent),) = console.sent
    assert (kind, sent["project"], sent["actor"]) == ("rotation", "acme", "kim")
    assert sent["api_key"].get_secret_value() == key
    assert sent["expected_generation"] == 1
    location = first.headers["location"]
    assert second.headers["location"] == location
    assert "Published, no response yet" in console.words(location)
    for path in (_ROTATE, _MAKE, location):
        assert key not in console.get(path)


def test_a_project_that_a_letter_asks_for_is_enrolled_with_a_key_that_was_saved(
    console: Scene,
) -> None:
    enroll, letter = "/projects/newcomer/enroll", f"/dead/{UPLOAD_DEAD}/{digest('unknown')}"
    row = console.publisher.rows["dead_letters"][3]
    of_unknown = {"letter": digest("unknown"), "code": "unknown_project", "project": "newcomer"}
    console.publisher.rows["dead_letters"] = [row.model_copy(update=of_unknown)]
    for path in ("/dead", letter):
        assert f'href="{enroll}"' in console.get(path)
    made = console.post(
        f"{enroll}/key", 200, form=console.token(console.get(enroll), f"{enroll}/key")
    )
    key = re.search(r'<pre class="secret"[^>]*>([^<]*)</pre>', made.text)
    assert key is not None
    confirmed: dict[str, Any] = {
        "form": console.token(made.text, enroll),
        "saved": "yes",
        "typed": "newcomer",
    }
    assert "typed" in console.post(enroll, 422, **confirmed | {"typed": "acme"}).text
    location = console.post(enroll, **confirmed).headers["location"]
    assert console.post(enroll, **confirmed).headers["location"] == location
    ((kind, sent),) = console.sent
    assert (kind, sent["project"], sent["actor"]) == ("enrollment", "newcomer", "kim")
    assert sent["api_key"].get_secret_value() == check_api_key(key[1])
    of = {"request_id": sent["request_id"], "project": "newcomer"}
    console.answer(sent["request_id"], event("project.enrolled", generation=1, **of))
    assert "Enrolled newcomer has a keyring" in console.words(location)


def test_a_project_that_is_known_is_not_enrolled_again(console: Scene) -> None:
    enroll = "/projects/acme/enroll"
    page = console.get(enroll)
    assert "The project is known already" in page
    console.post(f"{enroll}/key", 409, form=console.token(page, f"{enroll}/key"))
    # A letter that names no project that could exist leads nowhere.
    row = console.publisher.rows["dead_letters"][3]
    odd = {"code": "unknown_project", "project": "Not One"}
    console.publisher.rows["dead_letters"] = [row.model_copy(update=odd)]
    assert "Enroll…" not in console.words("/dead")


def test_a_button_pressed_twice_makes_another_key_and_drops_the_first(console: Scene) -> None:
    made = console.token(console.get(_ROTATE), _MAKE)
    first_page, first = _make(console, made)
    second_page, second = _make(console, made)
    assert first != second
    dropped = console.token(first_page, _ROTATE)
    refused = console.post(_ROTATE, 409, form=dropped, saved="yes", typed="acme")
    assert "Nothing was published" in refused.text
    console.post(_ROTATE, form=console.token(second_page, _ROTATE), saved="yes", typed="acme")
    ((_, sent),) = console.sent
    assert sent["api_key"].get_secret_value() == second


@pytest.mark.parametrize(
    "fields", [{"saved": "yes", "typed": "zoo"}, {"typed": "acme"}, {"saved": "yes"}]
)
def test_without_a_confirmation_no_key_is_published_or_shown_again(
    console: Scene, fields: dict[str, str]
) -> None:
    page, key = _make(console)
    again = console.post(_ROTATE, 422, form=console.token(page, _ROTATE), **fields).text
    assert key not in again
    assert 'class="problem"' in again
    assert not console.sent
    console.post(_ROTATE, form=console.token(again, _ROTATE), saved="yes", typed="acme")
    assert len(console.sent) == 1


def test_the_generation_is_that_of_the_page_with_the_key(console: Scene) -> None:
    page, _ = _make(console)
    newer = ProjectStatus(project="acme", generation=9)
    console.publisher.rows["projects"] = [newer]
    console.post(_ROTATE, form=console.token(page, _ROTATE), saved="yes", typed="acme")
    ((_, sent),) = console.sent
    assert sent["expected_generation"] == 1


def test_a_key_that_expired_is_not_published(console: Scene) -> None:
    page, _ = _make(console)
    token = console.token(page, _ROTATE)
    actions = console.context.actions
    actions.fresh_keys.drop(actions.forms.read(token, "session", "rotation").request_id)
    answer = console.post(_ROTATE, 409, form=token, saved="yes", typed="acme")
    assert "Nothing was published" in answer.text
    assert not console.sent


def test_a_rotation_of_unknown_outcome_can_be_sent_again_under_its_id(console: Scene) -> None:
    page, key = _make(console)
    console.publisher.publish_errors.append(OutcomeUnknownError("not confirmed"))
    confirmed: dict[str, Any] = {
        "form": console.token(page, _ROTATE),
        "saved": "yes",
        "typed": "acme",
    }
    location = console.post(_ROTATE, **confirmed).headers["location"]
    shown = console.words(location)
    assert "The outcome is unknown" in shown
    assert "same id" in shown
    assert console.post(f"{location}/repeat").headers["location"] == location
    ((_, sent),) = console.sent
    assert sent["api_key"].get_secret_value() == key
    action = console.context.actions.get(sent["request_id"])
    assert action is not None
    assert action.state is ActionState.PUBLISHED


def test_no_key_is_made_while_the_generation_is_not_known(console: Scene) -> None:
    path = "/projects/unknown/rotate"
    page = console.get(path)
    assert "generation is not known" in page
    assert "A rotation gives the project unknown a new API key. Within" in words_of(page)
    token = console.token(page, f"{path}/key")
    assert "secret" not in console.post(f"{path}/key", 409, form=token).text


def test_another_session_or_project_cannot_use_a_form(console: Scene) -> None:
    page, _ = _make(console)
    rotate = console.token(page, _ROTATE)
    sweep = console.token(console.get(_SWEEP), _SWEEP)
    delete = console.token(console.get(_DELETE), _DELETE)
    letters = console.token(console.get(f"{_CONFIRM}replay"), "/dead/move")
    console.post("/projects/zoo/rotate", 409, form=rotate, saved="yes", typed="zoo")
    console.post("/projects/zoo/delete", 409, form=delete, key="a", typed="a")
    console.sign_in("lee", "operate", "another session")
    for path, token in (
        (_ROTATE, rotate),
        (_SWEEP, sweep),
        (_DELETE, delete),
        ("/dead/move", letters),
        ("/dead/move", ""),
        (_SWEEP, ""),
    ):
        assert "Nothing was published" in console.post(path, 409, form=token).text
    assert not console.sent


def test_the_role_view_is_refused(console: Scene) -> None:
    made = console.token(console.get(_ROTATE), _MAKE)
    sweep = console.token(console.get(_SWEEP), _SWEEP)
    console.sign_in("kim", "view")
    for path in (_SWEEP, _ROTATE, _DELETE, "/projects/zoo/enroll", f"{_CONFIRM}replay"):
        console.get(path, 403)
    for path, token in ((_SWEEP, sweep), (_MAKE, made), (_DELETE, ""), ("/dead/move", "")):
        console.post(path, 403, form=token, scope="project", project="acme")
    for path in ("/keys/count", "/keys/count/cancel", "/dead/confirm"):
        console.post(path, 403)
    assert not console.sent


@pytest.mark.parametrize("move", ["replay", "discard"])
def test_all_letters_of_a_code_are_moved_by_a_worker(console: Scene, move: str) -> None:
    page = console.get(f"{_CONFIRM}{move}")
    shown = words_of(page)
    assert "92 dead letters with the code bad_seal" in shown
    assert "there may be more than 92" in shown
    fields = console.fields(page, "/dead/move")
    assert ("typed" in fields) == (move == "discard")
    reason = "Grüße \u202e x\u200cy 👩\u200d🚒"
    sent_fields: dict[str, Any] = {"form": fields["form"], "typed": "92", "reason": reason}
    location = console.post("/dead/move", **sent_fields).headers["location"]
    assert console.post("/dead/move", **sent_fields).headers["location"] == location
    ((kind, sent),) = console.sent
    assert (kind, sent["action"], sent["queue"]) == ("dead_letters", move, UPLOAD_DEAD)
    assert (sent["code"], sent["letters"], sent["actor"]) == ("bad_seal", None, "kim")
    assert sent["reason"] == reason
    request_id = sent["request_id"]
    moved: dict[str, Any] = {
        "queue": UPLOAD_DEAD,
        "action": move,
        "moved": 90,
        "left": 2,
        "project": "*",
    }
    console.answer(request_id, event("dead_letters.moved", request_id=request_id, **moved))
    outcome = console.words(location)
    assert f"90 {move}ed" in outcome
    assert f"2 could not be {move}ed, and stay where they are." in outcome


@pytest.mark.parametrize(("count", "button"), [(1, "Discard this letter"), (2, "with this code")])
def test_one_letter_is_not_called_all(console: Scene, count: int, button: str) -> None:
    code = CodeCount(queue=UPLOAD_DEAD, code="bad_seal", count=count)
    console.publisher.more["dead_letters"] = {"codes": (code,)}
    page = console.words(f"{_CONFIRM}discard")
    assert button in page
    assert "that arrive after you confirm stay where they are" in page


def test_selected_letters_have_a_form_for_each_queue(console: Scene) -> None:
    names = [f"{UPLOAD_DEAD}/{digest('one')}", f"{UPLOAD_DEAD}/{digest('two')}"]
    other = f"keyturn.control.dead/{digest('three')}"
    page = console.post("/dead/confirm", 200, move="discard", letter=[*names, names[0], other]).text
    assert "The letters are in several queues" in page
    assert "2 dead letters" in words_of(page)
    token = console.token(page, "/dead/move")
    letters = [name.rpartition("/")[2] for name in names]
    wrong = console.post("/dead/move", 422, form=token, letter=letters, typed="3").text
    assert re.search(r'class="problem">Type 2 to confirm', wrong)
    console.post("/dead/move", 400, form=token, letter=letters[:1], typed="2")
    console.post("/dead/move", form=token, letter=letters, typed="2")
    ((_, sent),) = console.sent
    assert (sent["code"], sent["letters"]) == (None, tuple(letters))


def test_nothing_selected_is_said(console: Scene) -> None:
    assert "Nothing was selected" in console.post("/dead/confirm", 200, move="replay").text


@pytest.mark.parametrize(
    ("reason", "problem"), [("a\x07b", "control characters"), ("x" * 501, "at most 500")]
)
def test_a_reason_is_refused_in_words_at_its_field(
    console: Scene, reason: str, problem: str
) -> None:
    page = console.get(f"{_CONFIRM}replay")
    token = console.token(page, "/dead/move")
    refused = console.post("/dead/move", 422, form=token, reason=reason).text
    assert re.search(rf'-reason-1-problem" class="problem">[^<]*{problem}', refused)
    assert not console.sent
    console.post("/dead/move", form=console.token(refused, "/dead/move"), reason="")
    assert len(console.sent) == 1


@pytest.mark.parametrize(
    "path",
    [
        f"{_CONFIRM}steal",
        "/dead/confirm?move=replay&queue=amq.other&code=bad_seal",
        f"/dead/confirm?move=replay&queue={UPLOAD_DEAD}&code=BAD",
    ],
)
def test_an_address_that_names_no_letters_leads_to_no_form(console: Scene, path: str) -> None:
    console.get(path, 400)
    console.post("/dead/confirm", 400, move="replay", letter="amq.other/x")


def test_a_count_is_started_and_stopped(console: Scene) -> None:
    assert "No count is complete yet" in console.words("/keys")
    console.post("/keys/count")
    page = console.words("/keys")
    assert "4,034 objects and records" in page
    assert "in use by" in page
    console.post("/keys/count/cancel")
