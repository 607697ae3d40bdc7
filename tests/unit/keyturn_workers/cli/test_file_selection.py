"""Which files an upload selects, and their object keys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer

from keyturn_workers.cli.upload import guess_content_type, select_files


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "b.txt").write_text("b")
    (tmp_path / "d" / "sub" / "a.json").write_text("{}")
    (tmp_path / "one.tar.gz").write_text("1")
    return tmp_path


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
