"""`keyturn enroll`, `rotate` and `sweep`: what they request, and how they end (SPEC 6, 14)."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from keyturn.crypto import user_kek
from keyturn.publisher import NotDeliveredError, OutcomeUnknownError
from keyturn_workers.cli.app import app
from tests.unit.keyturn_workers.cli.fakes import event

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keyturn.messages import Event
    from tests.unit.keyturn_workers.cli.fakes import Commands

KEY = "kt_" + "k" * 43
NEW_KEY = "kt_" + "n" * 43
OLD_KEY = "kt_" + "o" * 43
_DEFAULTS: dict[str, Any] = {
    "master_key": None,
    "encrypt_plaintext": False,
    "repair": False,
}


def _enrolled(request_id: str) -> list[Event]:
    return [event("project.enrolled", request_id=request_id, generation=1)]


def _accepted(rotation_id: str) -> Event:
    return event("rotation.accepted", rotation_id=rotation_id, generation=4)


def _completed(**counts: Any) -> Callable[[str], list[Event]]:
    return lambda rotation_id: [
        _accepted(rotation_id),
        event("sweep.progressed", sweep_id=rotation_id, objects=5, rewrapped=3),
        event("rotation.completed", rotation_id=rotation_id, **counts),
    ]


def _rejected(command: str, code: str = "kek_reused") -> Callable[[str], list[Event]]:
    kind, name = {
        "enroll": ("enroll.rejected", "request_id"),
        "rotate": ("rotation.rejected", "rotation_id"),
    }[command]
    fields = {"code": code, "detail": "that key was in use"}
    return lambda request_id: [event(kind, **{name: request_id}, **fields)]


def _sent(fake: Commands) -> dict[str, Any]:
    assert {method for method, _ in fake.publisher.sent} == {"enroll"}
    return fake.publisher.sent[-1][1]


def _rotations(fake: Commands) -> list[dict[str, Any]]:
    assert {method for method, _ in fake.publisher.sent} <= {"rotate"}
    return [given for _, given in fake.publisher.sent]


@pytest.fixture(params=["enroll", "rotate"])
def command(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_a_project_is_enrolled_with_nothing_allowed(fake: Commands) -> None:
    fake.publisher.script = _enrolled
    result = fake.run("enroll", "acme", API_KEY=KEY)
    assert result.exit_code == 0, result.stderr
    sent = _sent(fake)
    assert sent["api_key"].get_secret_value() == KEY
    assert (sent["plaintext"], sent["adopt"]) == (False, False)
    header, row = result.stdout.splitlines()
    assert header.split() == ["project", "status", "generation", "request_id"]
    assert row.split() == ["acme", "enrolled", "1", sent["request_id"]]
    assert KEY not in result.output


def test_what_the_project_may_hold_is_requested_by_options(fake: Commands) -> None:
    fake.publisher.script = _enrolled
    options = ("--plaintext", "--adopt")
    assert fake.run("enroll", "acme", *options, API_KEY=KEY).exit_code == 0
    sent = _sent(fake)
    assert (sent["plaintext"], sent["adopt"]) == (True, True)


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


def test_wrong_usage_leaves_no_key_behind_and_publishes_nothing(
    fake: Commands, tmp_path: Path
) -> None:
    target = tmp_path / "new"
    options = ("--generate", "--save-to", str(target), "--timeout-s", "0")
    result = fake.run("enroll", "acme", *options)
    assert result.exit_code in (1, 2)
    assert not target.exists()
    assert fake.publisher.sent == []


def test_a_rejection_exits_1_with_its_code(fake: Commands, command: str) -> None:
    fake.publisher.script = _rejected(command)
    result = fake.run(command, "acme", API_KEY=KEY, NEW_API_KEY=NEW_KEY)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "keyturn: kek_reused: that key was in use\n"
    result = fake.run(command, "acme", "--json", API_KEY=KEY, NEW_API_KEY=NEW_KEY)
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["status"], document["event"]["code"]) == ("rejected", "kek_reused")


def test_an_unconfirmed_request_is_sent_again_with_the_same_id(
    fake: Commands, command: str
) -> None:
    fake.publisher.script = {"enroll": _enrolled, "rotate": _completed()}[command]
    fake.publisher.errors = [OutcomeUnknownError("not confirmed")]
    assert fake.run(command, "acme", API_KEY=KEY, NEW_API_KEY=NEW_KEY).exit_code == 0
    first, second = fake.publisher.sent
    assert first == second


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new"


def _sent_key(fake: Commands) -> str:
    key: str = fake.publisher.sent[-1][1]["api_key"].get_secret_value()
    return key


def test_it_is_written_before_anything_is_published(
    fake: Commands, command: str, target: Path
) -> None:
    fake.publisher.errors = [NotDeliveredError("no worker")]
    result = fake.run(command, "acme", "--generate", "--save-to", str(target))
    assert (result.exit_code, result.stdout) == (1, "")
    key = target.read_text().strip()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    user_kek(key, "acme")
    assert _sent_key(fake) == key
    assert key not in result.output


def test_a_refusal_deletes_it(fake: Commands, command: str, target: Path) -> None:
    fake.publisher.script = _rejected(command)
    result = fake.run(command, "acme", "--generate", "--save-to", str(target))
    assert result.exit_code == 1
    assert not target.exists()
    assert f"{target} deleted: the request was refused" in result.stderr


@pytest.mark.parametrize(
    ("errors", "rejected", "options"),
    [
        ([], False, []),  # no event in time
        ([], False, ["--no-wait"]),
        ([NotDeliveredError("no worker")], False, []),
        ([OutcomeUnknownError("lost"), OutcomeUnknownError("lost")], False, []),
        ([OutcomeUnknownError("lost")], True, []),  # only one of two attempts was refused
    ],
)
def test_without_a_definite_refusal_it_stays(
    fake: Commands,
    command: str,
    target: Path,
    errors: list[Exception],
    *,
    rejected: bool,
    options: list[str],
) -> None:
    """The project may have the key, or may still get it."""
    fake.publisher.errors = list(errors)
    if rejected:
        fake.publisher.script = _rejected(command)
    fake.run(command, "acme", "--generate", "--save-to", str(target), *options)
    assert _sent_key(fake) == target.read_text().strip()


def test_it_stays_where_the_keyring_was_rolled_back(
    fake: Commands, command: str, target: Path
) -> None:
    """The request may have been served before that, and delivered again: then it is the key."""
    fake.publisher.script = _rejected(command, "keyring_rolled_back")
    result = fake.run(command, "acme", "--generate", "--save-to", str(target))
    assert result.exit_code == 1
    assert _sent_key(fake) == target.read_text().strip()


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


CUSTOMER_KEY = "kms-eu/arn:aws:kms:eu-central-1:111122223333:key/a"


@pytest.mark.parametrize(
    ("options", "has_api_key"),
    [((), False), (("--generate", "--save-to", "TARGET"), True)],
    ids=["alone", "with a new API key"],
)
def test_a_rotation_to_a_customer_key_changes_the_api_key_only_on_request(
    fake: Commands, tmp_path: Path, options: tuple[str, ...], *, has_api_key: bool
) -> None:
    """A new API key that was left in the environment does not count."""
    fake.publisher.script = _completed()
    given = [str(tmp_path / "new") if each == "TARGET" else each for each in options]
    result = fake.run("rotate", "acme", "--customer-key", CUSTOMER_KEY, *given, NEW_API_KEY=NEW_KEY)
    assert result.exit_code == 0, result.stderr
    (sent,) = _rotations(fake)
    assert sent["customer_key"] == CUSTOMER_KEY
    assert (sent["api_key"] is not None) is has_api_key
    assert sent["api_key"] is None or sent["api_key"].get_secret_value() != NEW_KEY


def test_a_project_can_be_enrolled_with_a_customer_key(fake: Commands) -> None:
    fake.publisher.script = _enrolled
    result = fake.run("enroll", "acme", "--customer-key", CUSTOMER_KEY, API_KEY=KEY)
    assert result.exit_code == 0, result.stderr
    assert _sent(fake)["customer_key"] == CUSTOMER_KEY


@pytest.mark.parametrize(
    "options",
    [
        ("rotate", "--customer-key", "kms-eu"),
        ("rotate", "--customer-key", "https://bao.example/key"),
        ("rotate", "--customer-key", "/key"),
        ("rotate", "--customer-key", CUSTOMER_KEY, "--save-to", "new"),
        ("enroll", "--customer-key", CUSTOMER_KEY, "--plaintext"),
    ],
)
def test_a_customer_key_of_another_form_or_with_plaintext_is_wrong_usage(
    fake: Commands, options: tuple[str, ...]
) -> None:
    command, *more = options
    result = fake.run(command, "acme", *more, API_KEY=KEY, NEW_API_KEY=NEW_KEY)
    assert result.exit_code == 2
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


def test_a_watched_rotation_that_is_rejected_shows_its_event(fake: Commands) -> None:
    fake.publisher.script = _rejected("rotate")
    result = fake.run("rotate", "acme", "--watch", "--json", NEW_API_KEY=NEW_KEY)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["event"]["code"] == "kek_reused"


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
    assert "keyturn: keyring_rolled_back; for details: keyturn --env-file" in result.stderr


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


def _follow(fake: Commands, request_id: str) -> str:
    """The command that works where this one was given."""
    return f"keyturn --env-file {fake.env_file} status {request_id} --project acme --watch"


def test_an_interrupt_says_how_to_follow_the_rotation(fake: Commands) -> None:
    fake.publisher.script = lambda rotation_id: [_accepted(rotation_id)]
    fake.publisher.interrupt = True
    result = fake.run("rotate", "acme", "--watch", NEW_API_KEY=NEW_KEY)
    assert result.exit_code == 130
    rotation_id = _rotations(fake)[0]["rotation_id"]
    assert result.stderr.endswith(_follow(fake, rotation_id) + "\n")


def test_an_interrupt_before_sending_is_silent(fake: Commands) -> None:
    fake.publisher.errors = [KeyboardInterrupt()]  # type: ignore[list-item]  # raised all the same
    result = fake.run("rotate", "acme", NEW_API_KEY=NEW_KEY)
    assert (result.exit_code, result.output) == (130, "")


def test_a_timeout_says_how_to_follow_the_rotation(fake: Commands) -> None:
    result = fake.run("rotate", "acme", "--timeout-s", "0.5", NEW_API_KEY=NEW_KEY)
    assert result.exit_code == 1
    rotation_id = _rotations(fake)[0]["rotation_id"]
    assert f"no event of {rotation_id} in 0.5 s" in result.stderr
    assert _follow(fake, rotation_id) in result.stderr
    assert result.stderr.count("\n") == 1


def test_who_stops_waiting_for_an_outcome_learns_which_key_to_keep(
    fake: Commands, tmp_path: Path
) -> None:
    """The request may still be served, and then nothing else opens the project."""
    new = tmp_path / "nb.key"
    result = fake.run("rotate", "acme", "--generate", "--save-to", str(new), "--timeout-s", "0.5")
    assert result.exit_code == 1
    assert f"keyturn: keep {new}: it may become the only key of acme\n" in result.stderr
    assert new.exists()
    result = fake.run("enroll", "acme", "--generate", "--timeout-s", "0.5")
    assert "keyturn: keep the API key above: it may become the only key of acme\n" in result.stderr
    result = fake.run("rotate", "acme", "--timeout-s", "0.5", NEW_API_KEY=NEW_KEY)
    assert "keep" not in result.stderr  # it is in the user's environment, not in a new place


def test_a_missing_setting_is_named() -> None:
    result = CliRunner().invoke(app, ["rotate", "acme", "--generate"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "KEYTURN_AMQP_URL is missing" in result.stderr


def _swept(sweep_id: str, **fields: Any) -> list[Event]:
    return [
        event("sweep.progressed", sweep_id=sweep_id, objects=1),
        event("sweep.completed", sweep_id=sweep_id, **fields),
    ]


@pytest.mark.parametrize(
    ("arguments", "requested"),
    [
        (["acme"], {"project": "acme"}),
        (["--all"], {"project": "*"}),
        (["--all", "--master-key", "2027"], {"project": "*", "master_key": "2027"}),
        (["acme", "--encrypt-plaintext"], {"project": "acme", "encrypt_plaintext": True}),
        (["acme", "--repair"], {"project": "acme", "repair": True}),
    ],
)
def test_the_request_is_published_and_queued(
    fake: Commands, arguments: list[str], requested: dict[str, Any]
) -> None:
    result = fake.run("sweep", *arguments)
    assert result.exit_code == 0, result.stderr
    ((method, sent),) = fake.publisher.sent
    sweep_id = sent.pop("sweep_id")
    assert (method, sent) == ("sweep", _DEFAULTS | requested)
    assert result.stdout.splitlines()[1].split() == [requested["project"], "queued", sweep_id]


@pytest.mark.parametrize("clean", [True, False])
def test_watching_a_sweep_of_all_shows_the_sums(fake: Commands, clean: bool) -> None:
    fake.publisher.script = lambda sweep_id: _swept(
        sweep_id, project="*", objects=9, rewrapped=4, failed=0 if clean else 2, clean=clean
    )
    result = fake.run("sweep", "--all", "--watch", "--json")
    assert result.exit_code == (0 if clean else 1)
    document = json.loads(result.stdout)
    assert (document["project"], document["status"]) == ("*", "completed")
    assert (document["event"]["objects"], document["event"]["rewrapped"]) == (9, 4)


def test_a_rejected_sweep_exits_1_with_its_code(fake: Commands) -> None:
    fake.publisher.script = lambda sweep_id: [
        event("sweep.rejected", sweep_id=sweep_id, code="unknown_project", detail="acme")
    ]
    result = fake.run("sweep", "acme", "--watch")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith("keyturn: unknown_project: acme\n")


def test_a_failed_sweep_exits_1_with_its_code(fake: Commands) -> None:
    fields = {"code": "unknown_master_key", "detail": "m2"}
    fake.publisher.script = lambda sweep_id: [
        event("sweep.progressed", sweep_id=sweep_id, objects=1),
        event("sweep.failed", sweep_id=sweep_id, **fields),
    ]
    result = fake.run("sweep", "acme", "--watch", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["status"] == "failed"
    hint = f"for details: keyturn --env-file {fake.env_file} status {document['sweep_id']}"
    assert result.stderr.endswith(f"keyturn: unknown_master_key: m2; {hint}\n")


def test_an_interrupt_says_how_to_follow_the_sweep(fake: Commands) -> None:
    fake.publisher.interrupt = True
    result = fake.run("sweep", "acme", "--watch")
    assert result.exit_code == 130
    sweep_id = fake.publisher.sent[0][1]["sweep_id"]
    assert result.stderr.endswith(_follow(fake, sweep_id) + "\n")


_USAGE = [
    (["rotate", "acme", "--watch", "--no-wait"], "cannot be used together"),
    (["rotate", "acme", "--save-to", "x"], "--save-to needs --generate"),
    (["rotate", "acme", "--generate", "--api-key-file", "x"], "cannot be used together"),
    (["rotate", "acme", "--generate", "--json"], "needs --save-to"),
    (["rotate", "acme", "--expected-generation", "0"], "--expected-generation"),
    (["sweep"], "name a project or use --all"),
    (["sweep", "acme", "--all"], "name a project or use --all"),
    (["sweep", "Not A Project"], "malformed_request: a project id"),
    (["sweep", "*"], "malformed_request: a project id"),
    (["sweep", "acme", "--master-key", "No Name"], "1 to 32 characters"),
]


@pytest.mark.parametrize(("arguments", "message"), _USAGE, ids=[" ".join(a) for a, _ in _USAGE])
def test_wrong_usage_exits_2_and_publishes_nothing(
    fake: Commands, arguments: list[str], message: str
) -> None:
    result = fake.run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert fake.publisher.sent == []
