"""`keyturn delete`: several keys, each with its own result (SPEC 6.6, 8.7, 14)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import stamina
from aiohttp import web

from keyturn.publisher import NotDeliveredError, OutcomeUnknownError
from tests.unit.keyturn.gateway.gateway import (
    AN_ID,
    Answer,
    always,
    drop,
    json_always,
    problem,
    problem_answer,
    serving,
)
from tests.unit.keyturn_workers.cli.fake_publisher import event
from tests.unit.keyturn_workers.cli.through_gateway import run

if TYPE_CHECKING:
    from pathlib import Path

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


def _answers(answers: dict[str, list[Any]]) -> Any:
    """The gateway's answers to the deletions of each key, in order."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response: web.StreamResponse = answers[request.path.rpartition("/")[2]].pop(0)
        return response

    return answer


async def test_through_a_gateway_each_key_is_deleted_and_waited_for() -> None:
    answers = {key: [web.Response(status=204)] for key in ("a", "b")}
    async with serving(_answers(answers)) as gateway:
        arguments = ("delete", "acme", "a", "b", "a", "--timeout-s", "39.5", "--json")
        result = await run(*arguments, "--gateway", gateway.url)
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)
    assert [(row["key"], row["status"]) for row in rows] == [("a", "deleted"), ("b", "deleted")]
    assert sorted(seen.target for seen in gateway.seen) == [
        "/v1/projects/acme/objects/a",
        "/v1/projects/acme/objects/b",
    ]
    assert {seen.headers["Prefer"] for seen in gateway.seen} == {"wait=40"}


async def test_through_a_gateway_without_waiting_the_requests_are_queued() -> None:
    async with serving(json_always(202, {"request_id": AN_ID})) as gateway:
        result = await run("delete", "acme", "a", "--no-wait", GATEWAY_URL=gateway.url)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].split() == ["a", "queued", AN_ID]
    assert "Prefer" not in gateway.seen[0].headers


async def _hang_up(request: web.Request) -> web.StreamResponse:
    drop(request)
    return web.Response()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (json_always(202, {"request_id": AN_ID}), "pending"),
        (problem(404, "not_found", "k"), "rejected"),
        (_hang_up, "unknown"),
        (always(502), "unknown"),
        (always(405), "failed"),
    ],
)
async def test_through_a_gateway_only_a_confirmed_deletion_is_called_deleted(
    answer: Answer, status: str
) -> None:
    async with serving(answer) as gateway:
        result = await run("delete", "acme", "a", "--json", "--gateway", gateway.url)
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)
    assert row["status"] == status
    assert row["detail"]
    assert row["code"] == ("not_found" if status == "rejected" else None)


async def test_a_project_with_too_many_deletions_waits_for_their_end() -> None:
    answers = {
        "a": [problem_answer(429, "too_many_requests"), web.Response(status=204)],
        "b": [problem_answer(429, "too_many_requests") for _ in range(3)],
    }
    with stamina.set_testing(True, attempts=3):
        async with serving(_answers(answers)) as gateway:
            result = await run("delete", "acme", "a", "b", "--json", "--gateway", gateway.url)
    rows = json.loads(result.stdout)
    assert [(row["status"], row["code"]) for row in rows] == [
        ("deleted", None),
        ("rejected", "too_many_requests"),
    ]


async def test_a_file_with_an_api_key_needs_a_gateway(tmp_path: Path) -> None:
    result = await run("delete", "acme", "a", "--api-key-file", str(tmp_path / "key"))
    assert result.exit_code == 2
    assert "--api-key-file needs --gateway or KEYTURN_GATEWAY_URL" in result.stderr
