"""Each page shows what was answered, with its age, and does only what its method allows."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.testclient import TestClient

from keyturn.crypto import Secret
from keyturn.errors import BrokerUnavailableError, WaitTimeoutError
from keyturn.messages import PROJECT_STATES, FailureStatus, Progress, ProjectStatus
from keyturn_workers.console.auth.protection import OwnOrigins, Protection
from keyturn_workers.console.auth.sessions import COOKIE, Account, Sessions, SignedOut
from keyturn_workers.console.key_usage import Census
from keyturn_workers.console.pages import queues, sweeps
from keyturn_workers.console.pages.audit import moment_of
from keyturn_workers.console.pages.queues import differences, is_present
from keyturn_workers.console.pages.sweeps import as_csv, as_text
from keyturn_workers.console.prometheus import History
from keyturn_workers.console.rendering.templates import PAGES, http_error_page
from keyturn_workers.core.master_key_usage import KeyGroup
from keyturn_workers.process.code_help import CODES
from tests.unit.keyturn_workers.console.scene import Scene, lived, words_of
from tools.harness import console_data
from tools.harness.console_data import ERASED, HOSTILE_KEY, WAITING, MadeUp, digest, made_up_id
from tools.harness.console_preview import CSRF, client, preview_app

if TYPE_CHECKING:
    from httpx2 import Response

    from keyturn_workers.console.auth.person import Role

READ: Final = {
    "/healthz",
    "/static/{name:path}",
    "/",
    "/projects",
    "/projects/{project}",
    "/projects/{project}/evidence/{digest}",
    "/projects/{project}/rotate",
    "/projects/{project}/rotate/key",
    "/projects/{project}/enroll",
    "/projects/{project}/enroll/key",
    "/projects/{project}/delete",
    "/sweeps",
    "/sweeps/new",
    "/sweeps/{project}/{sweep_id}",
    "/sweeps/{project}/{sweep_id}/failures.txt",
    "/sweeps/{project}/{sweep_id}/failures.csv",
    "/keys",
    "/actions/{request_id}",
    "/dead",
    "/dead/confirm",
    "/dead/{queue}/{letter}",
    "/queues",
    "/audit",
    "/codes",
}
"""What only reads: GET and HEAD."""

ACT: Final = {
    "/sweeps/new",
    "/keys/count",
    "/keys/count/cancel",
    "/projects/{project}/rotate/key",
    "/projects/{project}/rotate",
    "/projects/{project}/enroll/key",
    "/projects/{project}/enroll",
    "/projects/{project}/delete",
    "/actions/{request_id}/repeat",
    "/dead/confirm",
    "/dead/move",
}
"""What changes something, or leads to it: POST, by a person who may operate."""

_AT: Final = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
_PATHS: Final = tuple(path for path, _ in PAGES)
_URL: Final = "https://console.test"
_RUNNING: Final = f"/sweeps/umbrella/{made_up_id('running')}"
_PROVING: Final = f"/sweeps/wayne/{made_up_id('proving')}"
_FAILED: Final = f"/sweeps/hooli/{made_up_id('sweep 3')}"
_LETTER: Final = f"/dead/keyturn.upload.dead/{digest('letter 3')}"
_ALL: Final = (
    *_PATHS,
    *(f"/projects/{name}" for name in ("acme", "stark", WAITING, ERASED)),
    *(_RUNNING, _PROVING, _FAILED, _LETTER),
)
_VALUES: Final = {
    "project": "acme",
    "sweep_id": made_up_id("sweep 0"),
    "request_id": made_up_id("request"),
    "digest": digest("evidence acme 2"),
    "queue": "keyturn.upload.dead",
    "letter": digest("letter 3"),
    "name": "console.css",
}


def _path_of(route: str) -> str:
    """An address that the route serves."""
    for name, value in _VALUES.items():
        route = route.replace(f"{{{name}:path}}", value).replace(f"{{{name}}}", value)
    assert "{" not in route, f"no value for {route}"
    return route


@dataclass
class _Auth:
    middleware: list[Middleware]
    routes: list[Route] = field(default_factory=list)


@dataclass
class _Protected:
    """The pages behind the protection of the real console, and one session."""

    browser: TestClient
    csrf: str

    @classmethod
    def of(cls, role: Role) -> _Protected:
        sessions = Sessions(
            Secret(b"k" * 32), lambda *_: "stamp", SignedOut(None), session_s=1000, idle_s=100
        )
        cookie = sessions.begin(Account("password", "kim", "kim", role, "stamp"))
        session = sessions.read(cookie)
        assert session is not None
        protection = Middleware(
            Protection,
            sessions=sessions,
            origins=OwnOrigins.of(_URL, 443),
            open_paths=frozenset(),
            error_page=http_error_page,
        )
        app = preview_app(MadeUp(), auth=_Auth([protection]))
        return cls(TestClient(app, base_url=_URL, cookies={COOKIE: cookie}), session.csrf)

    def post(self, path: str, csrf: str, **headers: str) -> Response:
        return self.browser.post(
            path, data={"csrf": csrf}, headers={"Origin": _URL, **headers}, follow_redirects=False
        )


def test_each_route_is_one_of_these() -> None:
    """A new route must be listed: then it is clear what it needs."""
    known = {("GET", path) for path in READ} | {("POST", path) for path in ACT}
    routes = [route for route in preview_app(MadeUp()).routes if isinstance(route, Route)]
    found = {
        (method, route.path)
        for route in routes
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert found == known


@pytest.mark.parametrize("route", sorted(ACT))
def test_what_changes_something_needs_role_token_and_origin(route: str) -> None:
    path, viewer = _path_of(route), _Protected.of("view")
    refused = viewer.post(path, viewer.csrf)
    assert (refused.status_code, "Your role does not allow this." in refused.text) == (403, True)
    operator = _Protected.of("operate")
    for csrf in ("", "of another session"):
        assert "belongs to another session" in operator.post(path, csrf).text
    other = operator.post(path, operator.csrf, Origin="https://other.test")
    assert (other.status_code, "a page of the console" in other.text) == (403, True)


@pytest.mark.parametrize("route", sorted(READ - ACT))
def test_what_only_reads_takes_no_post(route: str) -> None:
    assert client(preview_app(MadeUp())).post(_path_of(route)).status_code == 405


@pytest.mark.parametrize("path", [*_ALL, "/healthz"])
def test_a_head_request_has_the_headers_and_no_body(path: str) -> None:
    answer = lived().browser.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", _ALL)
def test_untrusted_text_stays_text(path: str) -> None:
    page = lived().get(path)
    assert "<script>window" not in page
    assert "\u202e" not in page
    assert HOSTILE_KEY not in page


@pytest.mark.parametrize("path", _ALL)
def test_a_page_without_an_answer_opens_and_says_since_when_and_why(path: str) -> None:
    publisher = MadeUp(error=BrokerUnavailableError("the broker cannot be reached (refused)"))
    page = Scene(publisher).words(path)
    assert "not been read yet" in page
    assert "The broker cannot be reached (refused)." in page
    assert "No response since" in page
    # It says that it asks again by itself, and does.
    assert "data-refresh" in Scene(publisher).get(path)


@pytest.mark.parametrize("path", _ALL)
def test_with_the_broker_away_a_page_keeps_what_it_knows_with_its_age(path: str) -> None:
    now_s = 1000.0
    scene = lived(clock=lambda: now_s)
    known = scene.get(path)
    assert "No response" not in known
    # One time for the whole page, and those of two items that are 40 seconds old.
    assert known.count('class="as-of"') == (3 if path == "/" else 1)
    now_s += 10
    scene.publisher.error = WaitTimeoutError("none")
    page = scene.words(path)
    # Once for the whole page, not at each of its parts.
    assert page.count("No response since") == page.count("No control worker responds.") == 1
    assert "Nothing newer" not in page
    assert "not been read yet" not in page


@pytest.mark.parametrize("path", _PATHS)
def test_an_empty_deployment_says_what_that_means(path: str) -> None:
    page = Scene(MadeUp()).words(path)
    assert any(
        words in page for words in ("No ", "Nothing needs", "have not been", "not known yet")
    )


@pytest.mark.parametrize("path", _ALL)
def test_a_page_that_only_shows_asks_again_and_one_to_decide_on_does_not(path: str) -> None:
    scene = lived()
    is_live = 'hx-trigger="refresh"' in scene.get(path)
    assert is_live == (path != _LETTER)


def test_pages_of_decisions_do_not_change_below_a_persons_hands() -> None:
    scene = lived()
    for path in ("/sweeps/new", "/projects/acme/rotate", "/projects/acme/delete"):
        assert "data-refresh" not in scene.get(path)


def test_every_page_names_its_place_and_the_header_counts_what_waits() -> None:
    scene = lived()
    for path, title in PAGES:
        page = scene.get(path)
        assert f'href="{path}" aria-current="page"' in page
        assert f"<h1>{title}</h1>" in page
    words = scene.words("/projects")
    assert "Now 2 need attention now" in words
    assert "Dead letters 133 waiting" in words


def test_a_person_who_may_only_look_sees_no_button() -> None:
    scene = lived()
    scene.sign_in("vera", "view")
    for path in _ALL:
        page = scene.get(path)
        posts = page.count('method="post"')
        assert posts == 1, path  # to sign out
        assert "/sweeps/new" not in page


def test_now_shows_what_needs_attention_with_its_remedy_and_link() -> None:
    page = lived().get("/")
    assert 'href="/projects/stark"' in page
    assert 'href="/dead?queue=keyturn.upload.dead"' in page
    assert f'href="{_PROVING}"' in page
    words = words_of(page)
    for shown in ("Act now", "Give the workers the master key.", "keyturn status stark"):
        assert shown in words
    assert "240 projects 44 sweeps and rotations running 4 workers reporting" in words
    assert "341 requests waiting in the queues" in words
    # What runs comes first.
    places = [words.index(each) for each in ("under way", "Needs attention", "Work done")]
    assert places == sorted(places)
    assert "Proved 46 of 91 objects; waiting " in words
    assert "The last hour, as reported by workers." in words


def test_now_has_one_card_for_each_kind_of_problem() -> None:
    publisher = console_data.deployment()
    items = publisher.rows["attention"]
    dead = next(each for each in items if each.rule == "dead_letters")
    more = [
        dead.model_copy(update={"title": "1 dead letter: unknown_project", "command": "keyturn x"}),
        items[0].model_copy(update={"rule": "queue_unserved", "title": "Nothing consumes plan"}),
        items[0].model_copy(update={"rule": "queue_unserved", "title": "Nothing consumes sweep"}),
        items[0].model_copy(update={"rule": "of_tomorrow", "title": "One"}),
        items[0].model_copy(update={"rule": "of_tomorrow", "title": "Two"}),
    ]
    publisher.rows["attention"] = [*items, *more]
    page = Scene(publisher).get("/")
    assert page.count("<article") == len({each.rule for each in publisher.rows["attention"]})
    words = words_of(page)
    for title in ("133 dead letters, 2 codes", "Queues without a worker: 2", "Of tomorrow: 2"):
        assert title in words
    for row in ("92 dead letters with bad_seal", "1 dead letter: unknown_project", "keyturn x"):
        assert row in words
    # The navigation counts cards.
    assert "Now 4 need attention now" in words


def test_only_what_is_stale_says_how_old_it_is() -> None:
    """The page says it once for all that is as old as the page."""
    publisher = console_data.deployment()
    publisher.age = timedelta(minutes=5)
    words = Scene(publisher).words("/queues")
    assert words.index("as of") < words.index("5 min ago") < words.index("Workers differ")
    assert words.count("as of") == 3  # the page, and both tables


def test_now_shows_more_than_an_hour_only_from_prometheus() -> None:
    class Made:
        asked: list[int] = []  # noqa: RUF012

        async def read(self, hours: int) -> History:
            self.asked.append(hours)
            return History(codes=[("bad_seal", 7.0)], problem="Prometheus cannot be reached.")

    made: Any = Made()
    scene = lived(prometheus=made)
    page = scene.words("/?hours=24")
    assert "24 h" in page
    assert "Prometheus cannot be reached." in page
    assert "bad_seal" in page
    scene.get("/?hours=7")
    assert made.asked == [24, 1]
    assert not any(each["view"] == "totals" for each in scene.publisher.asked)
    assert "24 h" not in lived().words("/?hours=24")


def test_projects_are_filtered_sorted_and_paged_by_control_workers() -> None:
    scene = lived()
    page = scene.get("/projects?text=acme&state=ok&sort=generation&order=desc&master_key=m1")
    asked = next(each for each in scene.publisher.asked if each["view"] == "projects")
    chosen = asked["filter"]
    assert (chosen.text, chosen.state, chosen.master_key) == ("acme", "ok", "m1")
    assert (asked["order"], asked["page"]) == ("-generation", 1)
    assert 'aria-sort="descending"' in page
    second = scene.words("/projects?page=2&state=x&sort=x")
    assert "101 to 200 of 240 projects" in second
    assert scene.publisher.asked[-3:][0]["view"] in ("projects", "attention", "queues")


def test_no_project_matches_and_no_such_page_are_said() -> None:
    scene = lived()
    assert "No project matches 240 projects are known" in scene.words("/projects?text=nothing")
    assert "There is no such page" in scene.words("/projects?page=99")


def test_one_is_not_counted_in_the_plural() -> None:
    scene = lived()
    rows = scene.publisher.rows
    scene.publisher.rows = rows | {view: rows[view][:1] for view in ("projects", "sweeps", "audit")}
    for path, words in (
        ("/projects", "1 to 1 of 1 project"),
        ("/projects?text=nothing", "1 project is known"),
        ("/sweeps?text=nothing", "1 sweep is known"),
        ("/audit?text=nothing", "1 record was read"),
    ):
        page = scene.words(path)
        assert words in page, path
        assert f"{words}s" not in page, path
    assert "1 to 5 of 5 matching sweeps, 44 in all" in lived().words("/sweeps?text=acme")


def test_a_project_shows_keyring_sweeps_evidence_and_records() -> None:
    scene = lived()
    page = scene.words("/projects/acme")
    for words in (
        "Generation 1",
        "Sweeps and rotations",
        "Does not verify",
        "Latest audit records",
    ):
        assert words in page
    assert "Its keyring cannot be read" in scene.words("/projects/stark")
    assert "Its keyring was rolled back" in scene.words("/projects/wayne")
    scene.get("/projects/no-such-project", 404)
    scene.get("/projects/No%20Project", 404)


_OFFERS: Final = ("Sweep…", "Rotate key…", "Delete an object…")


def test_a_project_that_waits_for_its_customer_key_says_so_since_when_and_what_to_do() -> None:
    scene = lived()
    page = scene.words(f"/projects/{WAITING}")
    for words in (
        "A sweep or rotation waits for the customer key",
        "Customer key customers-eu/arn:aws:kms:",
        "State Key refused customer key",
        "Refused customer_key_refused since",
        "5 h ago",
        "Ask the customer whether this was intended",
        "Rewrapping 40 of 90 objects, waiting for the customer key",
    ):
        assert words in page
    assert all(offer in page for offer in _OFFERS)
    sweep = scene.words(f"/sweeps/{WAITING}/{made_up_id('waiting')}")
    assert "Waiting for the customer key customer_key_refused" in sweep
    assert "The sweep then goes on by itself." in sweep
    assert "Time left" not in sweep
    # One that gives its secret, or is not asked for one, is shown too.
    assert "vault/keyturn-acme no sweep or rotation waits for it" in scene.words("/projects/acme")
    assert "Customer key none" in scene.words("/projects/umbrella")


def test_an_erased_project_says_so_and_offers_nothing() -> None:
    scene = lived()
    page = scene.words(f"/projects/{ERASED}")
    for words in ("The project was erased", "State Erased", "vault/keyturn-tyrell Gone"):
        assert words in page
    html = scene.get(f"/projects/{ERASED}")
    assert not any(offer in page for offer in _OFFERS)
    assert "/sweeps/new" not in html
    assert "The project was erased" in scene.words(f"/projects/{ERASED}/rotate")
    form = scene.get(f"/projects/{ERASED}/rotate")
    token = scene.token(form, f"/projects/{ERASED}/rotate/key")
    assert "disabled" in form
    refused = scene.post(f"/projects/{ERASED}/rotate/key", 409, csrf=CSRF, form=token)
    assert "kt_" not in refused.text


def test_the_list_of_projects_marks_customer_keys_and_erased_projects() -> None:
    scene = lived()
    for project, mark in (
        (WAITING, "Key refused customer key"),
        (ERASED, "Erased"),
        ("acme", "customer key"),
    ):
        page = scene.get(f"/projects?text={project}")
        row = page.split(f'id="row-{project}"')[1].split("</tr>")[0]
        assert mark in words_of(row), project
    scene.get("/projects?state=waits_for_key")
    asked = [each for each in scene.publisher.asked if each["view"] == "projects"][-1]
    assert asked["filter"].state == "waits_for_key"


def test_each_filter_of_projects_can_be_chosen() -> None:
    page = lived().get("/projects")
    for state in PROJECT_STATES:
        assert f'<option value="{state}"' in page


def test_the_page_of_a_project_leads_with_what_people_ask_and_folds_the_rest() -> None:
    page = lived().get("/projects/acme")
    overview, _, rest = page.partition('<details id="keyring-details">')
    names = ["State", "Objects", "API key since", "Last proof", "Customer key"]
    assert re.findall(r"<dt>(.*?)</dt>", overview) == names
    for name in ("Generation", "Master key", "Enrolled", "User KEK"):
        assert f"<dt>{name}</dt>" in rest
    buttons = re.findall(r'<a class="button(.*?)" href="[^"]+">(\w+)', page.partition("<dt>")[0])
    assert buttons == [(" primary", "Rotate"), ("", "Sweep"), (" quiet", "Delete")]


@pytest.mark.parametrize(
    ("rotated_at", "words"), [(None, "Not rotated yet"), ("2026-11-01T00:00:00Z", "Never proven")]
)
def test_a_new_project_is_not_said_to_lack_a_proof(rotated_at: str | None, words: str) -> None:
    change = {"rotated_at": rotated_at, "last_proof_at": None, "last_end_clean": None}
    publisher = console_data.deployment()
    publisher.rows["projects"] = [
        row.model_copy(update=change) for row in publisher.rows["projects"] if row.project == "acme"
    ]
    scene = Scene(publisher)
    assert all(words in scene.words(path) for path in ("/projects?text=acme", "/projects/acme"))


def test_the_page_of_an_erasure_speaks_of_no_objects() -> None:
    scene = lived()
    page = scene.words(f"/sweeps/{ERASED}/{made_up_id('erasure')}")
    for words in ("Erasure of tyrell", "Erased", "Its evidence has the SHA-256"):
        assert words in page
    for words in ("Sweep again", "Failures", "Counts", "First rewrap"):
        assert words not in page


@pytest.mark.parametrize(
    ("change", "words", "not_there"),
    [
        (
            {"kind": "erasure", "code": "generation_mismatch"},
            "The erasure was refused",
            "replay it",
        ),
        ({"code": "customer_key_refused"}, "Then sweep again.", "replay it"),
        ({"code": "project_erased"}, "The sweep cannot continue", "Sweep again…"),
        ({"code": "project_erased"}, "The sweep cannot continue", "replay it"),
        ({"code": "lease_mismatch"}, "replay it", "Then sweep again."),
    ],
)
def test_what_failed_says_what_helps(change: dict[str, Any], words: str, not_there: str) -> None:
    publisher = console_data.deployment()
    publisher.rows["sweep"] = [
        row.model_copy(update={"status": "failed", "clean": False} | change)
        for row in publisher.rows["sweep"]
    ]
    page = Scene(publisher).words(_FAILED)
    assert words in page
    assert not_there not in page


def test_what_an_erased_project_left_keeps_no_master_key() -> None:
    census = Census(started_at=_AT, as_of=_AT, ended_at=_AT, counts={KeyGroup("erased"): 12})
    scene = lived()
    scene.context.census.newest = scene.context.census.complete = census
    assert "erased — 12 the project was erased: no master key is kept" in scene.words("/keys")


def test_evidence_is_downloaded_as_stored_and_none_that_does_not_verify() -> None:
    scene = lived()
    answer = scene.browser.get(f"/projects/acme/evidence/{digest('evidence acme 2')}")
    assert answer.json() == {"payload": "2"}
    assert answer.headers["content-type"] == "application/vnd.dsse.envelope.v1+json"
    assert answer.headers["content-disposition"].startswith('attachment; filename="acme-2-')
    for name in ("evidence acme 4", "evidence globex 2"):
        scene.get(f"/projects/acme/evidence/{digest(name)}", 404)
    Scene(MadeUp(error=WaitTimeoutError("none"))).get("/projects/acme/evidence/x", 503)


def test_a_sweep_that_may_be_proven_says_what_it_still_does() -> None:
    publisher = console_data.deployment()
    rows = publisher.rows["sweep"]
    publisher.rows["sweep"] = [
        row.model_copy(update={"progress": Progress(phase="proving", done=46, total=91)})
        for row in rows
    ]
    page = Scene(publisher).words(_PROVING)
    assert "Proving 46 of 91 objects" in page
    assert "Each one is now inspected again, to prove it." in page
    assert "two leases" not in page


def test_progress_and_the_moments_of_a_sweep_are_those_of_its_record() -> None:
    scene = lived()
    page = scene.words(_PROVING)
    for words in (
        "Proved 46 of 91 objects; waiting ",
        "two leases after the desired state changed",
        "Requested",
        "First rewrap",
        "All rewrapped",
        "Proof possible from",
        "Proven not yet",
    ):
        assert words in page
    assert 'data-refresh="2"' in scene.get(_RUNNING)
    ended = scene.words(_FAILED)
    for words in (
        "Not clean, 7 failed",
        "Ended, not clean",
        "1 to 7 of 7 failures",
    ):
        assert words in ended
    unknown = scene.get(f"/sweeps/hooli/{made_up_id('none')}", 404)
    assert "If it was just requested, it appears here" in unknown
    assert 'data-refresh="2"' in unknown
    assert 'hx-status:404="swap:outerMorph"' in unknown
    scene.get("/sweeps/hooli/nothing", 404)


def test_failures_are_taken_away_as_text_and_csv_whatever_their_names_hold() -> None:
    rows = [
        FailureStatus(project="acme", key="Reports/q3.pdf", code="corrupt_object"),
        FailureStatus(project="acme", key="a\nb\t<script>\u202e", code="no_usable_wrap"),
        FailureStatus(project="zoo", key="=HYPERLINK(1)", code="corrupt_object"),
        FailureStatus(project="zoo", key=None, code="unknown_master_key"),
        *(
            FailureStatus(project="zoo", key=f"{sign}1", code="locked_object")
            for sign in "\uff1d\uff0b\uff0d\uff20"
        ),
    ]
    lines = as_text(rows).splitlines()
    assert lines[0] == "corrupt_object\tacme\tReports/q3.pdf"
    assert lines[1] == "no_usable_wrap\tacme\ta\\nb\\t<script>\\u202e"
    assert len(lines) == len(rows)
    cells = [row[1] for row in csv.reader(io.StringIO(as_csv(rows)))]
    assert cells[1:4] == ["a\nb\t<script>\u202e", "'=HYPERLINK(1)", ""]
    assert {cell[0] for cell in cells[4:]} == {"'"}


def test_all_pages_of_failures_are_in_the_file() -> None:
    scene = lived()
    scene.publisher.rows["failures"] = [
        FailureStatus(project="hooli", key=f"k{number}", code="bad_seal") for number in range(450)
    ]
    text = scene.get(f"{_FAILED}/failures.txt")
    assert len(text.splitlines()) == 450
    table = scene.browser.get(f"{_FAILED}/failures.csv?code=bad_seal&text=k44")
    assert table.headers["content-disposition"].startswith("attachment")
    assert len(table.text.splitlines()) == 1 + 11
    scene.publisher.error = WaitTimeoutError("none")
    scene.get(f"{_FAILED}/failures.txt", 503)


def test_a_file_of_failures_says_if_they_are_not_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "_FIRST_PAUSE_S", 0)
    scene = lived()
    scene.publisher.rows["failures"] = [
        FailureStatus(project="hooli", key="k", code="bad_seal") for _ in range(250)
    ]
    scene.publisher.more["failures"] = {"is_complete": False}
    lines = scene.get(f"{_FAILED}/failures.txt").splitlines()
    assert len(lines) == 251
    assert lines[-1].startswith("# not all failures")
    asked = [each["page"] for each in scene.publisher.asked if each["view"] == "failures"]
    assert asked[-6:] == [1, 1, 1, 1, 1, 2]


def test_dead_letters_are_counted_by_code_with_what_to_do() -> None:
    scene = lived()
    page = scene.words("/dead")
    for words in (
        "keyturn.upload.dead holds 2,130 letters",
        "Replay all 92…",
        "Discard all 38…",
        "1 to 100 of 130 letters",
        "Expired",
    ):
        assert words in page
    assert "Replay all 38" not in page  # they would be refused again
    scene.get("/dead?queue=keyturn.upload&code=bad_seal&text=x")
    asked = [each for each in scene.publisher.asked if each["view"] == "dead_letters"][-1]
    assert (asked["filter"].queue, asked["filter"].code) == ("keyturn.upload.dead", "bad_seal")


def test_a_letter_keeps_its_row_while_newer_ones_come_above_it() -> None:
    """What is ticked stays ticked by the id of its box; copies of one letter have their own."""
    scene = lived()
    boxes = re.compile(r'<input id="(box-\S+)".*?value="(\S+)"')
    letters = scene.publisher.rows["dead_letters"]
    before = dict(boxes.findall(scene.get("/dead?text=globex")))
    newer = letters[3].model_copy(update={"letter": digest("newer"), "project": "globex"})
    scene.publisher.rows["dead_letters"] = [newer, letters[1], *letters]
    after = boxes.findall(Scene(scene.publisher).get("/dead?text=globex"))
    assert len(dict(after)) == len(after) == len(before) + 2
    assert before.items() <= dict(after).items()


def test_one_dead_letter_is_shown_without_what_is_sealed_and_one_that_is_gone_is_said() -> None:
    scene = lived()
    page = scene.words(_LETTER)
    assert page.startswith("reports/3.pdf · Keyturn")
    assert "Dead letters / reports/3.pdf" in page
    assert "It goes back to keyturn.upload" in page
    assert "(4,096 bytes)" in page
    gone = scene.words(f"/dead/keyturn.upload.dead/{digest('none')}", 404)
    assert "This letter is gone" in gone
    for path in ("/dead/keyturn.upload.dead/x", f"/dead/amq.other/{digest('letter 3')}"):
        scene.get(path, 404)


@pytest.mark.parametrize(
    ("action", "outcome", "word"),
    [
        ("dead_letter.replayed", "started", "Replayed"),
        ("dead_letter.discarded", "started", "Discarded"),
        ("dead_letter.replayed", "storage_unavailable", "This letter is gone"),
    ],
)
def test_a_letter_that_was_moved_says_so_and_by_whom(action: str, outcome: str, word: str) -> None:
    scene, name = lived(), digest("moved")
    (known, *_) = scene.publisher.rows["audit"]
    moved = {"action": action, "outcome": outcome, "request": name, "reason": "ticket 9"}
    scene.publisher.rows["audit"] = [
        known.model_copy(update=moved | {"queue": "keyturn.upload.dead", "actor": "grace"})
    ]
    page = scene.words(f"/dead/keyturn.upload.dead/{name}", 404)
    assert word in page
    assert ("By grace" in page and "ticket 9" in page) is (outcome == "started")
    in_trail = scene.words("/audit")
    assert (word in in_trail) is (outcome == "started")
    # The same letter of another queue is another letter.
    assert "This letter is gone" in scene.words(f"/dead/keyturn.control.dead/{name}", 404)


def test_each_code_links_to_what_it_means() -> None:
    scene = lived()
    for path in ("/projects/stark", "/dead", _LETTER, _FAILED, "/audit", "/projects/acme"):
        assert 'href="/codes#' in scene.get(path), path
    page = scene.get("/codes")
    for code, help_ in CODES.items():
        assert f'<tr role="row" id="{code}">' in page
        assert help_.meaning[1:] in words_of(page)
    # One that this version does not know leads nowhere.
    scene.publisher.rows["projects"] = [ProjectStatus(project="acme", code="code_of_tomorrow")]
    assert 'href="/codes#' not in scene.get("/projects?text=acme")


def test_cards_turn_to_a_warning_while_their_source_is_away() -> None:
    now_s = 1000.0
    scene = lived(clock=lambda: now_s)
    assert "tile away" not in scene.get("/")
    now_s += 10
    scene.publisher.error = WaitTimeoutError("none")
    page = scene.get("/")
    assert page.count("tile away") == 5
    assert "240 projects 44 sweeps" in words_of(page)
    never = Scene(MadeUp(error=BrokerUnavailableError("the broker cannot be reached")))
    assert "— projects —" in never.words("/")


@pytest.mark.parametrize(("chosen", "shown"), [("dark", "dark"), ("light", "light"), ("x", "")])
def test_the_theme_that_was_chosen_is_in_the_page(chosen: str, shown: str) -> None:
    scene = lived()
    scene.browser.cookies.set("__Host-keyturn-theme", chosen)
    page = scene.get("/projects")
    assert f'data-theme="{shown}"' in page if shown else "data-theme" not in page
    assert f'value="{shown}" selected' in page


@pytest.mark.parametrize("name", ["production", ""])
def test_every_page_and_every_confirmation_names_its_deployment(name: str) -> None:
    """Production and staging must not look alike where something is deleted."""
    scene = lived(deployment=name, color="red")
    begin, sweep = (scene.get(path) for path in ("/projects/acme/rotate", "/sweeps/new"))
    make, start = "/projects/acme/rotate/key", "/sweeps/new"
    letters = "/dead/confirm?move=discard&queue=keyturn.upload.dead&code=bad_seal"
    confirmations = [
        begin,
        sweep,
        scene.get("/projects/acme/delete"),
        scene.get(letters),
        scene.post(make, 200, form=scene.token(begin, make)).text,
        scene.post(start, 200, form=scene.token(sweep, start), scope="all").text,
    ]
    plate = f'<p class="deployment"><span class="vh">Deployment </span>{name}</p>'
    for page in confirmations:
        form = page.partition('class="confirm')[2].partition("</form>")[0]
        assert form.count(plate) == bool(name)
    pages = [*map(scene.get, _ALL), *confirmations]
    scene.auth.person = None
    pages.append(scene.get("/nowhere", 404))
    for page in pages:
        title = page.partition("<title>")[2].partition("</title>")[0]
        assert title.endswith(" · production · Keyturn" if name else " · Keyturn")
        assert 'data-color="red"' in page
        assert (plate in page) is bool(name)


def test_queues_and_workers_are_shown_with_what_differs() -> None:
    page = lived().words("/queues")
    assert "keyturn.notifications 0 0 —" in page  # no source is watched: nothing is wrong
    for words in ("keyturn.upload 40", "Reporting", "Missing", "Unknown", "The version differs"):
        assert words in page


def test_what_differs_between_workers_is_said_in_words() -> None:
    workers = [row for row in console_data.deployment().rows["workers"] if is_present(row)]
    row = workers[0]
    same = [row.model_copy(update={"host": f"host-{number}"}) for number in range(9)]
    assert differences(same) == []
    (found,) = differences([*same, row.model_copy(update={"version": "2"})])
    assert found.startswith("The version differs: 0.9.0 (upload on host-0, ")
    assert "and 6 more" in found


def test_the_audit_trail_is_filtered_by_control_workers() -> None:
    scene = lived()
    page = scene.words("/audit?project=acme&outcome=not_ok&since=2026-11-26&reports=yes")
    assert "record 118 of worker control is missing" in page
    asked = next(each for each in scene.publisher.asked if each["view"] == "audit")["filter"]
    assert (asked.project, asked.outcome, asked.reports) == ("acme", "not_ok", True)
    assert asked.since == "2026-11-26T00:00:00.000000Z"


def test_what_is_no_time_and_no_project_is_said_at_its_field() -> None:
    scene = lived()
    page = scene.get("/audit?since=soon&until=2h&project=No%20Project")
    assert 'aria-describedby="f-since-problem"' in page
    assert 'aria-describedby="f-project-problem"' in page
    assert "f-until-problem" not in page


@pytest.mark.parametrize(
    ("typed", "moment"),
    [
        ("2026-11-26", "2026-11-26T00:00:00+00:00"),
        ("2026-11-26 08:30", "2026-11-26T08:30:00+00:00"),
        ("2026-11-26T08:30+02:00", "2026-11-26T06:30:00+00:00"),
        ("2h", "2026-11-26T07:30:00+00:00"),
        (" 30min ", "2026-11-26T09:00:00+00:00"),
        ("3d", "2026-11-23T09:30:00+00:00"),
        ("soon", None),
        ("", None),
        ("0001-01-01T00:00+14:00", None),
        ("999999h", None),
    ],
)
def test_moments_as_people_type_them(typed: str, moment: str | None) -> None:
    now = moment_of("2026-11-26T09:30:12", None)  # type: ignore[arg-type]
    assert now is not None
    found = moment_of(typed, now)
    assert (found and found.isoformat()) == moment


def test_an_error_is_a_page_and_its_text_stays_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_workers: object) -> None:
        raise ValueError("a secret")

    monkeypatch.setattr(queues, "differences", fail)
    scene = lived()
    page = scene.words("/queues", 500)
    assert "Something went wrong" in page
    assert "secret" not in page
    assert "This page does not exist" in scene.words("/nowhere", 404)
    assert "does not accept this kind of request" in scene.words("/keys/count", 405)


def test_healthz_needs_no_session() -> None:
    scene = Scene(MadeUp())
    scene.auth.person = None
    assert scene.get("/healthz") == "ok\n"
