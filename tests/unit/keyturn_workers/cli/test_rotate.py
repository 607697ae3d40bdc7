"""`keyturn rotate`: which key is published, what it waits for, how it ends (SPEC 8.1, 14)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from keyturn.publisher import OutcomeUnknownError
from keyturn_workers.cli.app import app
from tests.unit.keyturn_workers.cli.fake_publisher import event

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keyturn.messages import Event
    from tests.unit.keyturn_workers.cli.fake_publisher import Commands

NEW_KEY = "kt_" + "n" * 43
OLD_KEY = "kt_" + "o" * 43


def _accepted(rotation_id: str) -> Event:
    return event("rotation.accepted", rotation_id=rotation_id, generation=4)


def _completed(**counts: Any) -> Callable[[str], list[Event]]:
    return lambda rotation_id: [
        _accepted(rotation_id),
        event("sweep.progressed", sweep_id=rotation_id, objects=5, rewrapped=3),
        event("rotation.completed", rotation_id=rotation_id, **counts),
    ]


def _rejected(rotation_id: str) -> list[Event]:
    fields = {"code": "kek_reused", "detail": "that key was in use"}
    return [event("rotation.rejected", rotation_id=rotation_id, **fields)]


def _rotations(fake: Commands) -> list[dict[str, Any]]:
    assert {method for method, _ in fake.publisher.sent} <= {"rotate"}
    return [given for _, given in fake.publisher.sent]


def test_an_accepted_rotation_prints_its_generation_and_id(fake: Commands) -> None:
    fake.publisher.script = _completed()
    result = fake.run("rotate", "acme", "--expected-generation", "3", NEW_API_KEY=NEW_KEY)
    assert result.exit_code == 0, result.stderr
    (sent,) = _rotations(fake)
    assert (sent["project"], sent["expected_generation"]) == ("acme", 3)
    assert sent["api_key"].get_secret_value() == NEW_KEY
    header, row = result.stdout.splitlines()
    assert header.split() == ["project", "status", "generation", "rotation_id"]
    assert row.split() == ["acme", "accepted", "4", sent["rotation_id"]]
    assert NEW_KEY not in result.output


def test_the_current_key_in_the_environment_never_becomes_the_new_one(
    fake: Commands,
) -> None:
    """KEYTURN_API_KEY is for downloads: rotating to it could only be a mistake."""
    result = fake.run("rotate", "acme", API_KEY=OLD_KEY)
    assert result.exit_code == 2
    assert "no new API key" in result.stderr
    assert fake.publisher.sent == []


def test_a_key_in_a_file_wins_over_the_environment(fake: Commands, tmp_path: Path) -> None:
    file = tmp_path / "new"
    file.write_text(NEW_KEY + "\n")
    fake.publisher.script = _completed()
    result = fake.run("rotate", "acme", "--api-key-file", str(file), NEW_API_KEY=OLD_KEY)
    assert result.exit_code == 0
    assert _rotations(fake)[0]["api_key"].get_secret_value() == NEW_KEY


def test_an_accepted_rotation_keeps_the_key_file_even_if_its_sweep_fails(
    fake: Commands, tmp_path: Path
) -> None:
    target = tmp_path / "new"
    fields = {"code": "keyring_rolled_back", "detail": ""}
    fake.publisher.script = lambda rotation_id: [
        _accepted(rotation_id),
        event("rotation.failed", rotation_id=rotation_id, **fields),
    ]
    result = fake.run("rotate", "acme", "--generate", "--save-to", str(target), "--watch")
    assert result.exit_code == 1
    assert _rotations(fake)[-1]["api_key"].get_secret_value() == target.read_text().strip()


def test_nothing_is_published_if_the_key_cannot_be_saved(fake: Commands, tmp_path: Path) -> None:
    target = tmp_path / "new"
    target.write_text("precious")
    result = fake.run("rotate", "acme", "--generate", "--save-to", str(target))
    assert result.exit_code == 1
    assert target.read_text() == "precious"
    assert fake.publisher.sent == []


def test_a_rejection_exits_1_with_its_code(fake: Commands) -> None:
    fake.publisher.script = _rejected
    result = fake.run("rotate", "acme", NEW_API_KEY=NEW_KEY)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "keyturn: kek_reused: that key was in use\n"
    watched = fake.run("rotate", "acme", "--watch", "--json", NEW_API_KEY=NEW_KEY)
    assert watched.exit_code == 1
    assert json.loads(watched.stdout)["event"]["code"] == "kek_reused"


def test_a_failed_rotation_exits_1_with_its_code(fake: Commands) -> None:
    fields = {"code": "keyring_rolled_back", "detail": ""}
    fake.publisher.script = lambda rotation_id: [
        _accepted(rotation_id),
        event("rotation.failed", rotation_id=rotation_id, **fields),
    ]
    result = fake.run("rotate", "acme", "--watch", "--json", NEW_API_KEY=NEW_KEY)
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["status"], document["event"]["type"]) == ("failed", "rotation.failed")
    assert "keyturn: keyring_rolled_back; for details: keyturn status" in result.stderr


def test_an_unconfirmed_rotation_is_sent_again_with_the_same_id(fake: Commands) -> None:
    fake.publisher.script = _completed()
    fake.publisher.errors = [OutcomeUnknownError("not confirmed")]
    result = fake.run("rotate", "acme", NEW_API_KEY=NEW_KEY)
    assert result.exit_code == 0
    first, second = _rotations(fake)
    assert first == second


@pytest.mark.parametrize(
    ("counts", "status", "message"),
    [
        ({"objects": 5, "rewrapped": 5, "current": 5}, 0, ""),
        ({"objects": 5, "failed": 1, "clean": False}, 1, "not clean: 1 failed, 0 stale noncurrent"),
        ({"noncurrent_stale": 2, "clean": False}, 1, "not clean: 0 failed, 2 stale noncurrent"),
    ],
)
def test_watching_continues_to_the_end_and_fails_unless_clean(
    fake: Commands, counts: dict[str, Any], status: int, message: str
) -> None:
    fake.publisher.script = _completed(**counts)
    result = fake.run("rotate", "acme", "--watch", NEW_API_KEY=NEW_KEY)
    assert result.exit_code == status
    rotation_id = _rotations(fake)[0]["rotation_id"]
    assert f"accepted: acme is at generation 4 ({rotation_id})\n" in result.stderr
    assert message in result.stderr
    header, row = (line.split() for line in result.stdout.splitlines())
    shown = dict(zip(header, row, strict=True))
    assert shown["rotation_id"] == rotation_id
    assert shown["clean"] == ("yes" if not status else "no")
    assert shown["objects"] == str(counts.get("objects", 0))


def test_json_is_one_document_without_other_output(fake: Commands) -> None:
    fake.publisher.script = _completed(objects=5)
    result = fake.run("rotate", "acme", "--watch", "--json", NEW_API_KEY=NEW_KEY)
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert (document["status"], document["event"]["objects"]) == ("completed", 5)
    queued = fake.run("rotate", "acme", "--no-wait", "--json", NEW_API_KEY=NEW_KEY)
    assert json.loads(queued.stdout)["status"] == "queued"
    assert json.loads(queued.stdout)["event"] is None


def test_an_interrupt_says_how_to_follow_the_rotation(fake: Commands) -> None:
    fake.publisher.script = lambda rotation_id: [_accepted(rotation_id)]
    fake.publisher.interrupt = True
    result = fake.run("rotate", "acme", "--watch", NEW_API_KEY=NEW_KEY)
    assert result.exit_code == 130
    rotation_id = _rotations(fake)[0]["rotation_id"]
    assert result.stderr.endswith(f"keyturn status {rotation_id} --project acme --watch\n")


def test_an_interrupt_before_sending_is_silent(fake: Commands) -> None:
    fake.publisher.errors = [KeyboardInterrupt()]  # type: ignore[list-item]  # raised all the same
    result = fake.run("rotate", "acme", NEW_API_KEY=NEW_KEY)
    assert (result.exit_code, result.output) == (130, "")


def test_a_timeout_says_how_to_follow_the_rotation(fake: Commands) -> None:
    result = fake.run("rotate", "acme", "--timeout-s", "0.5", NEW_API_KEY=NEW_KEY)
    assert result.exit_code == 1
    rotation_id = _rotations(fake)[0]["rotation_id"]
    assert f"no event of {rotation_id} in 0.5 s" in result.stderr
    assert f"keyturn status {rotation_id} --project acme --watch" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--watch", "--no-wait"], "cannot be used together"),
        (["--save-to", "x"], "--save-to needs --generate"),
        (["--generate", "--api-key-file", "x"], "cannot be used together"),
        (["--generate", "--json"], "needs --save-to"),
        (["--expected-generation", "0"], "--expected-generation"),
    ],
)
def test_contradictory_options_are_wrong_usage(
    fake: Commands, options: list[str], message: str
) -> None:
    result = fake.run("rotate", "acme", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert fake.publisher.sent == []


def test_a_missing_setting_is_named() -> None:
    result = CliRunner().invoke(app, ["rotate", "acme", "--generate"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "KEYTURN_AMQP_URL is missing" in result.stderr
