"""`keyturn enroll`: what is requested, and how its answer is reported (SPEC 5.4, 6.5, 14)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.publisher import OutcomeUnknownError
from tests.unit.keyturn_workers.cli.fake_publisher import event

if TYPE_CHECKING:
    from pathlib import Path

    from keyturn.messages import Event
    from tests.unit.keyturn_workers.cli.fake_publisher import Commands

KEY = "kt_" + "k" * 43


def _enrolled(request_id: str) -> list[Event]:
    return [event("project.enrolled", request_id=request_id, generation=1)]


def _rejected(request_id: str) -> list[Event]:
    fields = {"code": "already_enrolled", "detail": "acme has objects"}
    return [event("enroll.rejected", request_id=request_id, **fields)]


def _sent(fake: Commands) -> dict[str, Any]:
    assert {method for method, _ in fake.publisher.sent} == {"enroll"}
    return fake.publisher.sent[-1][1]


def test_a_project_is_enrolled_with_nothing_allowed(fake: Commands) -> None:
    fake.publisher.script = _enrolled
    result = fake.run("enroll", "acme", API_KEY=KEY)
    assert result.exit_code == 0, result.stderr
    sent = _sent(fake)
    assert sent["api_key"].get_secret_value() == KEY
    assert (sent["plaintext"], sent["v0"], sent["v0_api_key"], sent["adopt"]) == (
        False,
        False,
        None,
        False,
    )
    header, row = result.stdout.splitlines()
    assert header.split() == ["project", "status", "generation", "request_id"]
    assert row.split() == ["acme", "enrolled", "1", sent["request_id"]]
    assert KEY not in result.output


def test_what_the_project_may_hold_is_requested_by_options(fake: Commands, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("the key of the earlier system\n")
    fake.publisher.script = _enrolled
    options = ("--plaintext", "--v0", "--adopt", "--v0-api-key-file", str(old))
    assert fake.run("enroll", "acme", *options, API_KEY=KEY).exit_code == 0
    sent = _sent(fake)
    assert (sent["plaintext"], sent["v0"], sent["adopt"]) == (True, True, True)
    assert sent["v0_api_key"].get_secret_value() == "the key of the earlier system"


def test_without_waiting_the_request_is_queued(fake: Commands) -> None:
    result = fake.run("enroll", "acme", "--no-wait", "--json", API_KEY=KEY)
    assert result.exit_code == 0
    request_id = _sent(fake)["request_id"]
    assert json.loads(result.stdout) == {
        "project": "acme",
        "request_id": request_id,
        "status": "queued",
        "event": None,
    }


def test_a_rejection_exits_1_with_its_code(fake: Commands) -> None:
    fake.publisher.script = _rejected
    result = fake.run("enroll", "acme", API_KEY=KEY)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "keyturn: already_enrolled: acme has objects\n"
    document = fake.run("enroll", "acme", "--json", API_KEY=KEY)
    assert document.exit_code == 1
    assert json.loads(document.stdout)["status"] == "rejected"


def test_an_unconfirmed_enrollment_is_sent_again_with_the_same_id(fake: Commands) -> None:
    fake.publisher.script = _enrolled
    fake.publisher.errors = [OutcomeUnknownError("not confirmed")]
    assert fake.run("enroll", "acme", API_KEY=KEY).exit_code == 0
    assert fake.publisher.sent[0] == fake.publisher.sent[1]


@pytest.mark.parametrize("options", [["--v0-api-key-file", "nowhere"], ["--timeout-s", "0"]])
def test_wrong_usage_leaves_no_key_behind_and_publishes_nothing(
    fake: Commands, tmp_path: Path, options: list[str]
) -> None:
    target = tmp_path / "new"
    result = fake.run("enroll", "acme", "--generate", "--save-to", str(target), *options)
    assert result.exit_code in (1, 2)
    assert not target.exists()
    assert fake.publisher.sent == []
