"""`keyturn ls` and `keyturn inspect`: what metadata claims, without any key (SPEC 4.3 to 4.6)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from keyturn.crypto import BODY_CONTEXT, new_dek, seal, to_base64
from keyturn_workers.cli.app import app
from keyturn_workers.cli.objects import claims
from keyturn_workers.core.storage_values import Headers
from tests.unit.keyturn.gateway.gateway import json_always, page_of, problem, serving
from tests.unit.keyturn_workers.cli.fakes import use_bucket
from tests.unit.keyturn_workers.cli.through_gateway import run
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    deleted,
    enc,
    keyring,
    sealed_object,
)
from tools.harness.local_keys import desired_state
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from typer.testing import Result

_RING = keyring()
_WRAPS, _BODY = sealed_object(desired_state(_RING, MASTER_KEYS), "reports/q3.pdf")


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    made = MemoryStorage()

    use_bucket(monkeypatch, "objects", made)
    made.plant("acme/reports/q3.pdf", _BODY, Headers(enc(_WRAPS), "application/pdf"))
    made.plant("acme/gone", b"", Headers(deleted(desired_state(_RING, MASTER_KEYS), "gone")))
    made.plant("acme/plain", b"12345", Headers({"author": "kim"}, "text/plain"))
    made.plant("acme-2/other", b"1", Headers({}))
    return made


_LS = ("ls", "acme", "--as-operator")


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"KEYTURN_S3_BUCKET": "memory"})


def _json(*arguments: str) -> Any:
    result = _run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_listing_has_the_plaintext_sizes_of_one_projects_objects(storage: MemoryStorage) -> None:
    rows = _json(*_LS)
    assert [(row["key"], row["plaintext_bytes"]) for row in rows] == [
        ("plain", 5),
        ("reports/q3.pdf", 5),
    ]
    assert {*rows[0]} == {"key", "plaintext_bytes", "changed_at"}
    assert [row["key"] for row in _json(*_LS, "reports/")] == ["reports/q3.pdf"]
    storage.plant("acme/empty", b"", Headers({}))
    assert [row["plaintext_bytes"] for row in _json(*_LS, "empty")] == [0]


@pytest.mark.usefixtures("storage")
def test_tombstones_are_listed_on_request() -> None:
    assert [(row["key"], row["kind"]) for row in _json(*_LS, "--all")] == [
        ("gone", "tombstone"),
        ("plain", "plaintext"),
        ("reports/q3.pdf", "encrypted"),
    ]
    assert [row["kind"] for row in _json(*_LS, "-l", "-a")] == [
        "tombstone",
        "plaintext",
        "encrypted",
    ]
    assert _json(*_LS, "gone") == []


def test_an_object_that_is_gone_meanwhile_is_listed_only_with_all(storage: MemoryStorage) -> None:
    async def remove() -> None:
        await storage.delete("acme/gone")

    storage.before_next("head", remove)
    assert [row["kind"] for row in _json(*_LS, "-la")] == ["gone", "plaintext", "encrypted"]
    storage.plant("acme/gone", b"", Headers({}))
    storage.before_next("head", remove)
    assert [row["key"] for row in _json(*_LS)] == ["plain", "reports/q3.pdf"]


def test_tombstones_do_not_count_for_the_limit(storage: MemoryStorage) -> None:
    tombstone = Headers(deleted(desired_state(_RING, MASTER_KEYS), "a"))
    for number in range(100):
        storage.plant(f"acme/a{number:03}", b"", tombstone)
    assert [row["key"] for row in _json(*_LS, "--limit", "1")] == ["plain"]
    assert "raise --limit" in _run(*_LS, "--limit", "1").stderr


def test_a_listing_that_is_cut_says_so(storage: MemoryStorage) -> None:
    result = _run(*_LS, "--limit", "1")
    assert len(result.stdout.splitlines()) == 2
    assert "raise --limit" in result.stderr
    assert "raise --limit" not in _run(*_LS, "--limit", "2").stderr
    assert storage.stored_keys()


def test_an_objects_metadata_is_shown_without_its_wraps(storage: MemoryStorage) -> None:
    report = _json("inspect", "acme", "reports/q3.pdf")
    assert (report["kind"], report["generation"], report["master_key"]) == ("encrypted", 1, "m1")
    assert (report["plaintext_bytes"], report["stored_bytes"]) == (5, len(_BODY))
    assert (report["wrap_bytes_user"], report["wrap_bytes_admin"]) == (104, 104)
    assert report["commitment"] == _BODY[24:56].hex()
    output = _run("inspect", "acme", "reports/q3.pdf").output
    for secret in (_WRAPS.user, _WRAPS.admin):
        assert to_base64(secret) not in output
        assert secret.hex() not in output
    assert _json("inspect", "acme", "plain")["metadata"] == {"author": "kim"}
    assert storage.calls["head"] == 0


@pytest.mark.usefixtures("storage")
def test_an_object_that_is_not_there_is_not_found() -> None:
    result = _run("inspect", "acme", "none")
    assert (result.exit_code, result.stderr) == (1, "keyturn: not_found: none\n")


@pytest.mark.parametrize(
    ("metadata", "stored_bytes", "expected"),
    [
        ({}, 7, {"kind": "plaintext", "plaintext_bytes": 7}),
        ({"enc-upload": "of no wrap"}, 7, {"kind": "plaintext"}),
        ({"enc-algo": "deleted", "enc-dek-admin": "AAAA"}, 0, {"kind": "tombstone"}),
        ({"enc-dek-user": "AAAA"}, 40, {"kind": "corrupt"}),
        (enc(_WRAPS), 10, {"kind": "encrypted", "plaintext_bytes": None}),
        (
            enc(_WRAPS),
            len(seal(new_dek(), BODY_CONTEXT, b"12345")),
            {"kind": "encrypted", "plaintext_bytes": 5},
        ),
        ({"enc-algo": "ROT13"}, 7, {"kind": "unknown", "code": "unknown_algorithm"}),
        ({"enc-algo": "Cobblestone-256"}, 7, {"kind": "corrupt", "code": "corrupt_object"}),
    ],
)
def test_a_claim_is_what_metadata_and_length_say(
    metadata: dict[str, str], stored_bytes: int, expected: dict[str, Any]
) -> None:
    claimed = claims(metadata, stored_bytes)
    assert {name: claimed[name] for name in expected} == expected


def test_one_level_of_the_bucket_has_folders_in_order(storage: MemoryStorage) -> None:
    rows = _json(*_LS, "--folders")
    assert [(row["key"], row["plaintext_bytes"]) for row in rows] == [
        ("plain", 5),
        ("reports/", None),
    ]
    assert [row["key"] for row in _json(*_LS, "reports/", "--folders")] == ["reports/q3.pdf"]
    assert [row.get("kind") for row in _json(*_LS, "--folders", "-l")] == [
        "plaintext",
        None,
    ]
    result = _run(*_LS, "--folders", "--limit", "1")
    assert len(result.stdout.splitlines()) == 2
    assert "raise --limit" in result.stderr
    assert storage.stored_keys()


async def test_through_a_gateway_the_plaintexts_sizes_are_listed() -> None:
    document = page_of(["a", "b/\u202ec"])
    document["objects"][1]["size"] = None
    async with serving(json_always(200, document)) as gateway:
        rows = json.loads((await run("ls", "acme", "--json", GATEWAY_URL=gateway.url)).stdout)
        table = (await run("ls", "acme", "--gateway", gateway.url)).stdout
        gateway.answer = json_always(200, page_of(["pre fix/k"]))
        prefixed = (await run("ls", "acme", "pre fix", "--gateway", gateway.url)).stdout
    changed_at = "2026-11-24T10:00:00Z"
    assert rows == [
        {"key": "a", "plaintext_bytes": 5, "changed_at": changed_at},
        {"key": "b/\u202ec", "plaintext_bytes": None, "changed_at": changed_at},
    ]
    assert [line.split() for line in table.splitlines()] == [
        ["key", "plaintext_bytes", "changed_at"],
        ["a", "5", changed_at],
        ["b/\\u202ec", "-", changed_at],
    ]
    assert prefixed.splitlines()[1].startswith("pre fix/k  ")
    assert [seen.target.partition("?")[2] for seen in gateway.seen] == [
        "limit=1000",
        "limit=1000",
        "prefix=pre%20fix&limit=1000",
    ]


async def test_through_a_gateway_folders_are_rows_without_a_size() -> None:
    async with serving(json_always(200, page_of(["b"], ["a/", "c\u202e/"]))) as gateway:
        result = await run("ls", "acme", "--folders", "--gateway", gateway.url)
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["key", "plaintext_bytes", "changed_at"],
        ["a/", "-", "-"],
        ["b", "5", "2026-11-24T10:00:00Z"],
        ["c\\u202e/", "-", "-"],
    ]
    assert gateway.seen[0].target.endswith("?delimiter=%2F&limit=1000")


async def test_through_a_gateway_no_more_is_read_than_the_limit_needs() -> None:
    document = page_of(["a", "b", "c"], next_after="c")
    async with serving(json_always(200, document)) as gateway:
        result = await run("ls", "acme", "--limit", "2", "--gateway", gateway.url)
    assert len(result.stdout.splitlines()) == 3
    assert "raise --limit (now 2)" in result.stderr
    assert [seen.target.partition("?")[2] for seen in gateway.seen] == ["limit=3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--long", "--long and --all require --as-operator"),
        ("--all", "--long and --all require --as-operator"),
        ("a\nb", "prefix cannot contain control characters"),
        ("--as-operator", "--as-operator and --gateway cannot be used together"),
        ("--as-operator --api-key-file key", "--as-operator and --api-key-file cannot be used"),
    ],
)
async def test_options_of_the_other_way_are_wrong_usage(arguments: str, message: str) -> None:
    async with serving(json_always(200, page_of([]))) as gateway:
        result = await run("ls", "acme", *arguments.split(" "), "--gateway", gateway.url)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert gateway.seen == []


async def test_a_gateways_refusal_of_a_listing_is_one_line() -> None:
    async with serving(problem(401, "unauthorized", "not this project's key")) as gateway:
        result = await run("ls", "acme", "--gateway", gateway.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "keyturn: unauthorized: not this project's key\n"
