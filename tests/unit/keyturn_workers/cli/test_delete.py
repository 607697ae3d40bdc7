"""`keyturn delete`: several keys, each with its own result (SPEC 6.6, 8.7, 14)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.publisher import NotDeliveredError, OutcomeUnknownError
from tests.unit.keyturn_workers.cli.fake_publisher import event

if TYPE_CHECKING:
    from keyturn.messages import Event
    from tests.unit.keyturn_workers.cli.fake_publisher import Commands


def _deleted(fake: Commands, refused: str | None = None) -> Any:
    def script(request_id: str) -> list[Event]:
        key = next(g["key"] for _, g in fake.publisher.sent if g["request_id"] == request_id)
        if key == refused:
            fields = {"code": "unknown_project", "detail": "acme"}
            return [event("delete.rejected", request_id=request_id, **fields)]
        return [event("object.deleted", request_id=request_id, key=key)]

    return script


def test_each_key_is_deleted_once_and_waited_for(fake: Commands) -> None:
    fake.publisher.script = _deleted(fake)
    result = fake.run("delete", "acme", "a", "b/c", "a", "--json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)
    assert [(row["key"], row["status"]) for row in rows] == [("a", "deleted"), ("b/c", "deleted")]
    assert [given["key"] for _, given in fake.publisher.sent] == ["a", "b/c"]
    for row in rows:
        assert row["event"]["request_id"] == row["request_id"]


def test_a_rejection_of_one_does_not_affect_the_others(fake: Commands) -> None:
    fake.publisher.script = _deleted(fake, refused="b")
    result = fake.run("delete", "acme", "a", "b", "c")
    assert result.exit_code == 1
    assert result.stderr == "keyturn: 1 of 3 failed; the first was b: unknown_project: acme\n"
    statuses = [line.split()[1] for line in result.stdout.splitlines()[1:]]
    assert statuses == ["deleted", "rejected", "deleted"]


def test_without_waiting_the_requests_are_queued(fake: Commands) -> None:
    result = fake.run("delete", "acme", "a", "--no-wait")
    assert result.exit_code == 0
    row = result.stdout.splitlines()[1].split()
    assert row == ["a", "queued", fake.publisher.sent[0][1]["request_id"]]


def test_an_unconfirmed_deletion_is_sent_again_with_the_same_id(fake: Commands) -> None:
    fake.publisher.script = _deleted(fake)
    fake.publisher.errors = [OutcomeUnknownError("not confirmed")]
    assert fake.run("delete", "acme", "a").exit_code == 0
    assert fake.publisher.sent[0] == fake.publisher.sent[1]


@pytest.mark.parametrize(
    ("errors", "status"),
    [
        ([NotDeliveredError("no worker")], "failed"),
        ([OutcomeUnknownError("lost"), OutcomeUnknownError("lost")], "unknown"),
        ([], "untold"),
    ],
)
def test_only_a_confirmed_deletion_is_called_deleted(
    fake: Commands, errors: list[Exception], status: str
) -> None:
    fake.publisher.errors = errors
    result = fake.run("delete", "acme", "a", "--json")
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)
    assert (row["status"], row["event"]) == (status, None)
    assert row["detail"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["acme"], "Missing argument"),
        (["acme", "a", "../b"], "malformed_request: a key has no empty"),
        (["Not A Project", "a"], "malformed_request: a project id"),
    ],
)
def test_wrong_usage_exits_2_and_deletes_nothing(
    fake: Commands, arguments: list[str], message: str
) -> None:
    result = fake.run("delete", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert fake.publisher.sent == []
