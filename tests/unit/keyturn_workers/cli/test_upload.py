"""`keyturn upload`: which files it selects, and only an event calls one stored (SPEC 6.4, 14)."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

from keyturn.errors import StorageUnavailableError
from keyturn.publisher import NotDeliveredError, OutcomeUnknownError
from keyturn_workers.cli.upload import guess_content_type, select_files
from tests.unit.keyturn_workers.cli.fakes import event

if TYPE_CHECKING:
    from keyturn.messages import Event
    from tests.unit.keyturn_workers.cli.fakes import Commands


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    (folder / "reports").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"first")
    (folder / "reports" / "b.pdf").write_bytes(b"second")
    monkeypatch.chdir(folder)
    return folder


def _stored(upload_id: str) -> list[Event]:
    return [event("upload.stored", upload_id=upload_id, key="k", size=5, generation=2)]


def _sent(fake: Commands) -> dict[str, dict[str, Any]]:
    """What was uploaded, by its key."""
    return {given["key"]: given for _, given in fake.publisher.sent}


def _rows(fake: Commands, *arguments: str, exit_code: int = 0, **more: Any) -> list[Any]:
    result = fake.run("upload", "acme", *arguments, "--json", **more)
    assert result.exit_code == exit_code, result.output
    rows: list[Any] = json.loads(result.stdout)
    return rows


def test_files_and_folders_are_queued_by_their_names(fake: Commands) -> None:
    rows = _rows(fake, "a.txt", "reports", "--metadata", "author=Kim", "--no-wait")
    assert [(row["key"], row["status"]) for row in rows] == [
        ("a.txt", "queued"),
        ("reports/b.pdf", "queued"),
    ]
    sent = _sent(fake)
    assert {key: given["body"] for key, given in sent.items()} == {
        "a.txt": b"first",
        "reports/b.pdf": b"second",
    }
    assert sent["reports/b.pdf"]["content_type"] == "application/pdf"
    for row in rows:
        assert sent[row["key"]]["upload_id"] == row["upload_id"]
        assert sent[row["key"]]["metadata"] == {"author": "Kim"}


def test_keys_and_content_types_may_be_given(fake: Commands) -> None:
    _rows(fake, "a.txt", "--key", "2026/x", "--content-type", "text/csv", "--no-wait")
    _rows(fake, "a.txt", "--key-prefix", "2027/", "--no-wait")
    assert set(_sent(fake)) == {"2026/x", "2027/a.txt"}
    assert _sent(fake)["2026/x"]["content_type"] == "text/csv"


def test_an_upload_waits_until_its_event_says_that_the_file_is_stored(fake: Commands) -> None:
    fake.publisher.script = _stored
    (row,) = _rows(fake, "a.txt")
    assert (row["status"], row["size"], row["generation"]) == ("stored", 5, 2)
    assert row["event"]["upload_id"] == row["upload_id"]
    fake.publisher.script = lambda _: []
    (row,) = _rows(fake, "a.txt", exit_code=1)
    assert row["status"] == "pending"
    assert row["upload_id"] in row["detail"]


def test_a_file_that_fails_does_not_affect_the_others(fake: Commands, here: Path) -> None:
    (here / "reports" / "c\nd").write_bytes(b"third")
    fake.publisher.script = _stored
    result = fake.run("upload", "acme", "reports", "a.txt", "--concurrency", "1")
    assert result.exit_code == 1
    assert "1 of 3 failed; the first was reports/c" in result.stderr
    assert "malformed_request" in result.stderr
    assert set(_sent(fake)) == {"a.txt", "reports/b.pdf"}


def test_a_person_sees_what_failed_and_one_line_about_the_rest(fake: Commands) -> None:
    fake.publisher.script = _stored
    result = fake.run("upload", "acme", "reports", "a.txt")
    assert result.exit_code == 0
    assert re.fullmatch(r"2 files stored, 10 B, \d+\.\d s\n", result.stdout)
    result = fake.run("upload", "acme", "a.txt", "--no-wait")
    assert result.stdout == "1 of 1 files sent; `--json` prints their ids\n"
    fake.publisher.errors = [NotDeliveredError("no worker")]
    result = fake.run("upload", "acme", "reports", "a.txt", "--concurrency", "1")
    assert result.exit_code == 1
    header, failure, summary = result.stdout.splitlines()
    assert header.split() == ["path", "key", "status", "upload_id", "detail"]
    assert failure.split()[:3] == ["reports/b.pdf", "reports/b.pdf", "failed"]
    assert summary.startswith("1 of 2 files stored, 5 B, ")


def test_a_wait_for_a_worker_is_not_silent(fake: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyturn_workers.cli.publishing._TICK_S", 0.05)
    monkeypatch.setattr("keyturn_workers.cli.publishing._NOTE_EVERY_S", 1)
    fake.publisher.delay_s = 1.3
    fake.publisher.script = _stored
    result = fake.run("upload", "acme", "a.txt")
    assert result.stderr == "keyturn: sent; waiting for a worker (1 s)\n"
    result = fake.run("upload", "acme", "a.txt", "--json")
    assert result.stderr == ""
    fake.publisher.script = lambda id_: [event("object.deleted", request_id=id_, key="k")]
    result = fake.run("delete", "acme", "k")
    assert result.stderr == "keyturn: sent; waiting for a worker (1 s)\n"


def test_ctrl_c_says_what_is_stored_and_how_to_go_on(
    fake: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.publisher.script = _stored
    waited = list[str]()

    async def wait(upload_id: str, **_: object) -> Event:
        waited.append(upload_id)
        if len(waited) > 1:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
        return _stored(upload_id)[0]

    monkeypatch.setattr(fake.publisher, "wait", wait)
    result = fake.run("upload", "acme", "reports", "a.txt", "--concurrency", "1")
    assert result.exit_code == 130
    assert "already_exists" in result.stderr
    assert result.stderr.startswith("keyturn: 1 of 2 files are stored, 1 more were sent")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotDeliveredError("no worker"), "failed", None),
        (StorageUnavailableError("staging failed"), "failed", "storage_unavailable"),
    ],
)
def test_a_file_that_could_not_be_sent_says_why(
    fake: Commands, error: Exception, status: str, code: str | None
) -> None:
    fake.publisher.errors = [error]
    (row,) = _rows(fake, "a.txt", exit_code=1)
    assert (row["status"], row["code"]) == (status, code)
    assert row["detail"]


def test_a_file_is_read_again_for_its_second_attempt_and_a_pipe_is_not(fake: Commands) -> None:
    fake.publisher.errors = [OutcomeUnknownError("lost")]
    (row,) = _rows(fake, "a.txt", "--no-wait")
    assert row["status"] == "queued"
    first, second = (given for _, given in fake.publisher.sent)
    assert first == second
    fake.publisher.sent.clear()
    fake.publisher.errors = [OutcomeUnknownError("lost")]
    (row,) = _rows(fake, "-", "--key", "k", exit_code=1, stdin=b"piped")
    assert row["status"] == "unknown"
    assert [given["body"] for _, given in fake.publisher.sent] == [b"piped"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.txt", "reports", "--key", "k"], "--key needs exactly one file or -"),
        (["reports", "--key", "k"], "--key needs exactly one file or -"),
        (["a.txt", "--key", "k", "--key-prefix", "p/"], "cannot be used together"),
        (["-"], "standard input needs --key"),
        (["a.txt", "--key", "../k"], "malformed_request: a key has no empty"),
        (["-", "--key", "a//k"], "malformed_request: a key has no empty"),
    ],
)
def test_wrong_usage_exits_2_and_uploads_nothing(
    fake: Commands, arguments: list[str], message: str
) -> None:
    result = fake.run("upload", "acme", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert fake.publisher.sent == []


def test_a_bucket_that_is_half_set_is_wrong_usage(fake: Commands) -> None:
    """Without any bucket small files are sent all the same."""
    result = fake.run("upload", "acme", "a.txt", S3_BUCKET="bucket", S3_ACCESS_KEY_ID="x")
    assert result.exit_code == 2
    assert "S3_SECRET_ACCESS_KEY" in result.stderr
    assert fake.publisher.sent == []


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tree"
    (folder / "d" / "sub").mkdir(parents=True)
    (folder / "d" / "b.txt").write_text("b")
    (folder / "d" / "sub" / "a.json").write_text("{}")
    (folder / "one.tar.gz").write_text("1")
    monkeypatch.chdir(folder)
    return folder


def _keys(paths: list[str], prefix: str = "") -> list[str]:
    return [
        file.object_key
        for file in select_files([Path(p) for p in paths], prefix, None, pytest.fail)
    ]


@pytest.mark.parametrize(
    ("paths", "prefix", "keys"),
    [
        (["d"], "", ["d/b.txt", "d/sub/a.json"]),
        (["d/"], "", ["d/b.txt", "d/sub/a.json"]),
        (["d/sub"], "", ["sub/a.json"]),
        (["d/sub/a.json", "one.tar.gz"], "2026/", ["2026/a.json", "2026/one.tar.gz"]),
        (["."], "", ["one.tar.gz", "d/b.txt", "d/sub/a.json"]),
    ],
)
def test_keys_are_relative_to_the_parent_of_the_argument(
    tree: Path, paths: list[str], prefix: str, keys: list[str]
) -> None:
    assert _keys(paths, prefix) == keys
    del tree


def test_links_and_pipes_inside_folders_are_skipped_with_a_reason(tree: Path) -> None:
    (tree / "d" / "link").symlink_to("/etc/hostname")
    (tree / "d" / "loop").symlink_to("..")
    os.mkfifo(tree / "d" / "pipe")
    skipped: list[str] = []
    files = select_files([Path("d")], "", None, skipped.append)
    assert [file.object_key for file in files] == ["d/b.txt", "d/sub/a.json"]
    assert sorted(skipped) == [
        "d/link is a symbolic link",
        "d/loop is a symbolic link",
        "d/pipe is not a regular file",
    ]


def test_two_files_with_the_same_key_are_rejected(tree: Path) -> None:
    with pytest.raises(typer.BadParameter, match="same key"):
        select_files([Path("d/b.txt"), tree / "d" / "b.txt"], "", None, pytest.fail)


def test_an_invalid_name_affects_only_its_own_file(tree: Path) -> None:
    (tree / "d" / "bad\nname").write_text("x")
    files = select_files([Path("d")], "", None, pytest.fail)
    assert [file.problem for file in files if file.object_key == "d/bad\nname"] == [
        "a key has no control characters"
    ]
    assert sum(file.problem is None for file in files) == 2


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("a.json", "application/json"),
        ("a.tar.gz", "application/gzip"),
        ("a.unknown-ending", "application/octet-stream"),
        ("noending", "application/octet-stream"),
    ],
)
def test_content_types_are_guessed_from_the_extension(name: str, content_type: str) -> None:
    assert guess_content_type(name) == content_type
