"""What became of a request: each state says what happened and what can be done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyturn.errors import BrokerUnavailableError
from tests.unit.keyturn_workers.console.actions.publishers import event
from tests.unit.keyturn_workers.console.sweeps.scene import SWEEP_ID

if TYPE_CHECKING:
    from tests.unit.keyturn_workers.console.sweeps.scene import Scene

_DELETE = "/projects/acme/delete"


def _delete(console: Scene) -> str:
    token = console.token(console.get(_DELETE), _DELETE)
    location: str = console.post(_DELETE, form=token, key="a", typed="a").headers["location"]
    return location


def test_what_was_not_sent_can_be_sent_again(console: Scene) -> None:
    console.publisher.errors.append(BrokerUnavailableError("connection refused"))
    path = _delete(console)
    page = console.get(path)
    assert "Not sent" in page
    assert "connection refused" in page
    console.auth.sign_in("kim", "view")
    assert "Send again" not in console.get(path)
    console.post(f"{path}/repeat", 403)
    console.auth.sign_in("lee", "operate")
    assert console.post(f"{path}/repeat").headers["location"] == path
    assert console.sent[1][1] == console.sent[0][1] | {"actor": "lee"}
    assert "2 times, under one id" in console.get(path)


def test_an_answer_ends_the_refreshing_of_its_page(console: Scene) -> None:
    path = _delete(console)
    assert 'id="live"' in console.get(path)
    portal = console.client.portal
    assert portal is not None
    answer = event("object.deleted", request_id=path.rpartition("/")[2], key="a")
    portal.call(console.publisher.answers.put, answer)
    page = console.get(path)
    assert "never takes another body" in page
    assert 'id="live"' not in page


def test_a_request_of_an_earlier_run_is_looked_for_in_the_audit_trail(console: Scene) -> None:
    page = console.get(f"/actions/{SWEEP_ID}", 404)
    assert f"/audit?text={SWEEP_ID}" in page
    console.post(f"/actions/{SWEEP_ID}/repeat", 404)
    console.get("/actions/nothing", 404)
