"""`keyturn delete`: several keys, each with its own result (SPEC 6.6, 8.7, 14)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.identifiers import keyring_s3_key
from keyturn.publisher import NotDeliveredError, OutcomeUnknownError
from keyturn_workers.core.storage_values import Headers
from tests.unit.keyturn_workers.cli.fakes import event, use_bucket
from tests.unit.keyturn_workers.factories import MASTER_KEYS, deleted, keyring
from tools.harness.local_keys import desired_state
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from typer.testing import Result

    from keyturn.messages import Event
    from tests.unit.keyturn_workers.cli.fakes import Commands


def _deleted(fake: Commands, refused: str | None = None) -> Any:
    def script(request_id: str) -> list[Event]:
        keys = next(g["keys"] for _, g in fake.publisher.sent if g["request_id"] == request_id)
        fields = {"code": "locked_object", "detail": "a lock"}
        return [
            event("delete.rejected", request_id=request_id, key=key, **fields)
            if key == refused
            else event("object.deleted", request_id=request_id, key=key)
            for key in keys
        ]

    return script


def test_each_key_is_deleted_once_by_one_request(fake: Commands) -> None:
    fake.publisher.script = _deleted(fake)
    result = fake.run("delete", "acme", "a", "b/c", "a", "--json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)
    assert [(row["key"], row["status"]) for row in rows] == [("a", "deleted"), ("b/c", "deleted")]
    assert [given["keys"] for _, given in fake.publisher.sent] == [["a", "b/c"]]
    for row in rows:
        assert (row["event"]["request_id"], row["event"]["key"]) == (row["request_id"], row["key"])


def test_a_rejection_of_one_does_not_affect_the_others(fake: Commands) -> None:
    fake.publisher.script = _deleted(fake, refused="b")
    result = fake.run("delete", "acme", "a", "b", "c")
    assert result.exit_code == 1
    assert result.stderr == "keyturn: 1 of 3 failed; the first was b: locked_object: a lock\n"
    statuses = [line.split()[1] for line in result.stdout.splitlines()[1:]]
    assert statuses == ["deleted", "rejected", "deleted"]


def test_a_thousand_keys_are_a_request(fake: Commands) -> None:
    keys = [f"k{number}" for number in range(2100)]
    assert fake.run("delete", "acme", *keys, "--no-wait").exit_code == 0
    assert [given["keys"] for _, given in fake.publisher.sent] == [
        keys[:1000],
        keys[1000:2000],
        keys[2000:],
    ]


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
        ([], "pending"),
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
        (["acme"], "give object keys, or --prefix"),
        (["acme", "a", "--prefix", "b"], "give object keys, or --prefix"),
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


# All objects under a prefix.


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    made = MemoryStorage()
    use_bucket(monkeypatch, "delete", made)
    made.plant(keyring_s3_key("acme"), b"{}", Headers({}))
    for key, body in (("2025/a", b"1"), ("2025/b", b"2"), ("2025/empty", b""), ("2026/c", b"3")):
        made.plant(f"acme/{key}", body, Headers({}))
    tombstone = deleted(desired_state(keyring(), MASTER_KEYS), "2025/gone")
    made.plant("acme/2025/gone", b"", Headers(tombstone))
    return made


_LISTED = ["2025/a", "2025/b", "2025/empty"]


def _delete_2025(fake: Commands, *arguments: str, stdin: bytes | None = None) -> Result:
    command = ("delete", "acme", "--prefix", "2025/", *arguments)
    return fake.run(*command, stdin=stdin, S3_BUCKET="memory")


@pytest.mark.usefixtures("storage")
def test_what_is_listed_is_counted_confirmed_and_deleted(fake: Commands) -> None:
    fake.publisher.script = _deleted(fake)
    result = _delete_2025(fake, stdin=b"y\n")
    assert result.exit_code == 0, result.stderr
    assert "Permanently delete 3 objects under 2025/ of acme? [y/N]" in result.stderr
    assert result.stdout.endswith("3 objects deleted\n")
    assert [given["keys"] for _, given in fake.publisher.sent] == [_LISTED]


def test_an_object_that_is_gone_meanwhile_is_not_deleted(
    fake: Commands, storage: MemoryStorage
) -> None:
    async def remove() -> None:
        await storage.delete("acme/2025/empty")

    async def nothing() -> None:
        """The keyring's head."""

    storage.before_next("head", nothing)
    storage.before_next("head", remove)
    assert _delete_2025(fake, "--yes", "--no-wait").exit_code == 0
    assert [given["keys"] for _, given in fake.publisher.sent] == [["2025/a", "2025/b"]]


@pytest.mark.usefixtures("storage")
@pytest.mark.parametrize(
    ("stdin", "status", "said"),
    [(b"n\n", 1, "aborted"), (b"", 2, "without a terminal, delete --prefix needs --yes")],
    ids=["refused", "no answer"],
)
def test_nothing_is_deleted_without_a_confirmation(
    fake: Commands, stdin: bytes, status: int, said: str
) -> None:
    result = _delete_2025(fake, stdin=stdin)
    assert result.exit_code == status
    assert said in result.stderr
    assert fake.publisher.sent == []


@pytest.mark.usefixtures("storage")
def test_of_a_prefix_only_what_failed_is_shown(fake: Commands) -> None:
    fake.publisher.script = _deleted(fake, refused="2025/b")
    result = _delete_2025(fake, "--yes")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == "2 objects deleted"
    assert result.stdout.splitlines()[2].split()[:2] == ["2025/b", "rejected"]
    assert "locked_object: a lock" in result.stderr


@pytest.mark.usefixtures("storage")
def test_a_prefix_without_objects_is_done_already(fake: Commands) -> None:
    result = fake.run("delete", "acme", "--prefix", "2024/", S3_BUCKET="memory")
    assert (result.exit_code, result.stdout) == (0, "no objects under 2024/\n")
    assert fake.publisher.sent == []


@pytest.mark.usefixtures("storage")
def test_a_prefix_of_a_project_that_is_not_enrolled_is_an_error(fake: Commands) -> None:
    result = fake.run("delete", "nosuch", "--prefix", "", S3_BUCKET="memory")
    assert result.exit_code == 1
    assert result.stderr.startswith("keyturn: unknown_project: ")
