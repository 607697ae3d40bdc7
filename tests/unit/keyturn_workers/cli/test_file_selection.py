"""Which files an upload means, and the keys that they take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer

from keyturn_workers.cli.file_selection import find, guessed_type


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "b.txt").write_text("b")
    (tmp_path / "d" / "sub" / "a.json").write_text("{}")
    (tmp_path / "one.tar.gz").write_text("1")
    return tmp_path


def _keys(paths: list[str], prefix: str = "") -> list[str]:
    return [source.key for source in find([Path(p) for p in paths], prefix, None, pytest.fail)]


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
def test_keys_are_relative_to_where_the_argument_stands(
    tree: Path, paths: list[str], prefix: str, keys: list[str]
) -> None:
    assert _keys(paths, prefix) == keys
    del tree


def test_links_and_pipes_inside_folders_are_left_out_and_told(tree: Path) -> None:
    (tree / "d" / "link").symlink_to("/etc/hostname")
    (tree / "d" / "loop").symlink_to("..")
    os.mkfifo(tree / "d" / "pipe")
    told: list[str] = []
    found = find([Path("d")], "", None, told.append)
    assert [source.key for source in found] == ["d/b.txt", "d/sub/a.json"]
    assert sorted(told) == [
        "d/link: a symbolic link",
        "d/loop: a symbolic link",
        "d/pipe: no regular file",
    ]


def test_two_files_of_one_key_are_refused(tree: Path) -> None:
    with pytest.raises(typer.BadParameter, match="same key"):
        find([Path("d/b.txt"), tree / "d" / "b.txt"], "", None, pytest.fail)


def test_a_name_that_no_key_may_have_is_refused_alone(tree: Path) -> None:
    (tree / "d" / "bad\nname").write_text("x")
    found = find([Path("d")], "", None, pytest.fail)
    assert [source.problem for source in found if source.key == "d/bad\nname"] == [
        "a key has no control characters"
    ]
    assert sum(source.problem is None for source in found) == 2


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("a.json", "application/json"),
        ("a.tar.gz", "application/gzip"),
        ("a.unknown-ending", "application/octet-stream"),
        ("noending", "application/octet-stream"),
    ],
)
def test_content_types_are_guessed_by_the_ending(name: str, content_type: str) -> None:
    assert guessed_type(name) == content_type
