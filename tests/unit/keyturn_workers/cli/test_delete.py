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
from tests.unit.keyturn_workers.cli.fakes import event
from tests.unit.keyturn_workers.cli.through_gateway import run

if TYPE_CHECKING:
    from pathlib import Path

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


def _outcome(*deleted: str, **rejected: str) -> web.Response:
    """The response that names these keys, each of the rejected ones with its code."""
    refused = [{"key": key, "code": code, "detail": key} for key, code in rejected.items()]
    document = {"request_id": AN_ID, "deleted": list(deleted), "rejected": refused}
    return web.json_response(document)


def _in_order(*responses: web.Response) -> Answer:
    left = list(responses)

    async def answer(_: web.Request) -> web.StreamResponse:
        return left.pop(0)

    return answer


def _accepted(**rejected: str) -> web.Response:
    refused = [{"key": key, "code": code, "detail": key} for key, code in rejected.items()]
    return web.json_response({"request_id": AN_ID, "rejected": refused}, status=202)


async def test_through_a_gateway_each_key_is_deleted_by_one_request() -> None:
    async with serving(_in_order(_outcome("a", "b"))) as gateway:
        arguments = ("delete", "acme", "a", "b", "a", "--timeout-s", "39.5", "--json")
        result = await run(*arguments, "--gateway", gateway.url)
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)
    assert [(row["key"], row["status"]) for row in rows] == [("a", "deleted"), ("b", "deleted")]
    (seen,) = gateway.seen
    assert (seen.method, seen.target) == ("POST", "/v1/projects/acme/deletes")
    assert json.loads(seen.body or b"") == {"keys": ["a", "b"]}
    assert seen.headers["Prefer"] == "wait=40"


async def test_through_a_gateway_a_key_is_rejected_alone() -> None:
    async with serving(_in_order(_outcome("a", b="not_found"))) as gateway:
        result = await run("delete", "acme", "a", "b", "--json", "--gateway", gateway.url)
    assert result.exit_code == 1
    assert "1 of 2 failed; the first was b: not_found" in result.stderr
    statuses = [(row["status"], row["code"]) for row in json.loads(result.stdout)]
    assert statuses == [("deleted", None), ("rejected", "not_found")]


async def test_what_is_not_final_when_the_gateway_answers_is_asked_for_again() -> None:
    """A gateway waits for a minute at most, and workers may be busy for longer."""
    answers = _in_order(_accepted(b="not_found"), _accepted(), _outcome("a", "c"))
    async with serving(answers) as gateway:
        result = await run("delete", "acme", "a", "b", "c", "--json", "--gateway", gateway.url)
    statuses = [row["status"] for row in json.loads(result.stdout)]
    assert statuses == ["deleted", "rejected", "deleted"]
    bodies = [json.loads(seen.body or b"") for seen in gateway.seen]
    assert bodies == [{"keys": ["a", "b", "c"]}, {"keys": ["a", "c"]}, {"keys": ["a", "c"]}]


async def test_through_a_gateway_without_waiting_the_requests_are_queued() -> None:
    async with serving(_in_order(_accepted(b="not_found"))) as gateway:
        result = await run("delete", "acme", "a", "b", "--no-wait", GATEWAY_URL=gateway.url)
    assert result.exit_code == 1
    lines = [line.split() for line in result.stdout.splitlines()[1:]]
    assert [line[:3] for line in lines] == [["a", "queued", AN_ID], ["b", "rejected", AN_ID]]
    assert "Prefer" not in gateway.seen[0].headers


async def _hang_up(request: web.Request) -> web.StreamResponse:
    drop(request)
    return web.Response()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (json_always(202, {"request_id": AN_ID, "rejected": []}), "pending"),
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
        arguments = ("--timeout-s", "0.1", "--json", "--gateway", gateway.url)
        result = await run("delete", "acme", "a", *arguments)
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)
    assert row["status"] == status
    assert row["detail"]
    assert row["code"] == ("not_found" if status == "rejected" else None)


async def test_a_project_with_too_many_deletions_waits_for_their_end() -> None:
    busy = [problem_answer(429, "too_many_requests") for _ in range(4)]
    with stamina.set_testing(True, attempts=3):
        async with serving(_in_order(busy[0], _outcome("a"), *busy[1:])) as gateway:
            first = await run("delete", "acme", "a", "--json", "--gateway", gateway.url)
            second = await run("delete", "acme", "b", "--json", "--gateway", gateway.url)
    rows = [json.loads(result.stdout)[0] for result in (first, second)]
    assert [(row["status"], row["code"]) for row in rows] == [
        ("deleted", None),
        ("rejected", "too_many_requests"),
    ]


# All objects under a prefix.

_LISTED = {
    "objects": [
        {"key": f"2025/{name}", "size": 1, "changed_at": "2026-11-24T10:00:00Z"} for name in "ab"
    ],
    "prefixes": [],
    "next": None,
}


def _with_listing(deleting: web.Response) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(_LISTED) if request.method == "GET" else deleting

    return answer


async def test_what_is_listed_is_counted_confirmed_and_deleted() -> None:
    async with serving(_with_listing(_outcome("2025/a", "2025/b"))) as gateway:
        arguments = ("delete", "acme", "--prefix", "2025/", "--gateway", gateway.url)
        result = await run(*arguments, stdin="y\n")
    assert result.exit_code == 0, result.stderr
    assert "Permanently delete 2 objects under 2025/ of acme? [y/N]" in result.stderr
    assert result.stdout.endswith("2 objects deleted\n")
    listed, deleted = gateway.seen
    assert listed.target.endswith("prefix=2025%2F&limit=1000")
    assert json.loads(deleted.body or b"") == {"keys": ["2025/a", "2025/b"]}


@pytest.mark.parametrize(
    ("stdin", "status", "said"),
    [("n\n", 1, "aborted"), ("", 2, "without a terminal, delete --prefix needs --yes")],
    ids=["refused", "no answer"],
)
async def test_nothing_is_deleted_without_a_confirmation(
    stdin: str, status: int, said: str
) -> None:
    async with serving(_with_listing(_outcome())) as gateway:
        arguments = ("delete", "acme", "--prefix", "2025/", "--gateway", gateway.url)
        result = await run(*arguments, stdin=stdin)
    assert result.exit_code == status
    assert said in result.stderr
    assert [seen.method for seen in gateway.seen] == ["GET"]


async def test_of_a_prefix_only_what_failed_is_shown() -> None:
    deleting = web.json_response(
        {
            "request_id": AN_ID,
            "deleted": ["2025/a"],
            "rejected": [{"key": "2025/b", "code": "locked_object", "detail": "a lock"}],
        }
    )
    async with serving(_with_listing(deleting)) as gateway:
        arguments = ("delete", "acme", "--prefix", "2025/", "--yes", "--gateway", gateway.url)
        result = await run(*arguments)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == "1 object deleted"
    assert result.stdout.splitlines()[2].split()[:2] == ["2025/b", "rejected"]
    assert "locked_object: a lock" in result.stderr


async def test_a_prefix_without_objects_is_done_already() -> None:
    listed: dict[str, Any] = {"objects": [], "prefixes": [], "next": None}
    async with serving(json_always(200, listed)) as gateway:
        arguments = ("delete", "acme", "--prefix", "2025/", "--gateway", gateway.url)
        result = await run(*arguments)
    assert (result.exit_code, result.stdout) == (0, "no objects under 2025/\n")


async def test_a_file_with_an_api_key_needs_a_gateway(tmp_path: Path) -> None:
    result = await run("delete", "acme", "a", "--api-key-file", str(tmp_path / "key"))
    assert result.exit_code == 2
    assert "--api-key-file needs --gateway or KEYTURN_GATEWAY_URL" in result.stderr
