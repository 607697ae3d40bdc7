"""`keyturn sweep`: what it requests, and how it ends (SPEC 6.6, 14)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.keyturn_workers.cli.fake_publisher import event

if TYPE_CHECKING:
    from keyturn.messages import Event
    from tests.unit.keyturn_workers.cli.fake_publisher import Commands

_DEFAULTS: dict[str, Any] = {
    "master_key": None,
    "encrypt_plaintext": False,
    "repair": False,
}


def _completed(sweep_id: str, **fields: Any) -> list[Event]:
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
    fake.publisher.script = lambda sweep_id: _completed(
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
    hint = f"for details: keyturn status {document['sweep_id']}"
    assert result.stderr.endswith(f"keyturn: unknown_master_key: m2; {hint}\n")


def test_an_interrupt_says_how_to_follow_the_sweep(fake: Commands) -> None:
    fake.publisher.interrupt = True
    result = fake.run("sweep", "acme", "--watch")
    assert result.exit_code == 130
    sweep_id = fake.publisher.sent[0][1]["sweep_id"]
    assert result.stderr.endswith(f"keyturn status {sweep_id} --project acme --watch\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a project or use --all"),
        (["acme", "--all"], "name a project or use --all"),
        (["Not A Project"], "malformed_request: a project id"),
        (["*"], "malformed_request: a project id"),
        (["acme", "--master-key", "No Name"], "1 to 32 characters"),
    ],
)
def test_wrong_usage_exits_2_and_publishes_nothing(
    fake: Commands, arguments: list[str], message: str
) -> None:
    result = fake.run("sweep", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert fake.publisher.sent == []
