"""A generated API key is in its file until its request is refused: `enroll`, `rotate` (SPEC 14)."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import user_kek
from keyturn.publisher import NotDeliveredError, OutcomeUnknownError
from tests.unit.keyturn_workers.cli.fake_publisher import event

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keyturn.messages import Event
    from tests.unit.keyturn_workers.cli.fake_publisher import Commands


@pytest.fixture(params=["enroll", "rotate"])
def command(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new"


def _rejected(command: str, code: str = "kek_reused") -> Callable[[str], list[Event]]:
    kind, name = {
        "enroll": ("enroll.rejected", "request_id"),
        "rotate": ("rotation.rejected", "rotation_id"),
    }[command]
    return lambda request_id: [event(kind, **{name: request_id}, code=code, detail="")]


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
