"""A folder as the destination: names that every file system holds, and what is never left."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import sqlite3
from contextlib import closing, contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.identifiers import is_object_key
from keyturn_workers.core.errors import ExportError
from keyturn_workers.offline.export.folder import MANIFEST_FILE, Folder
from keyturn_workers.offline.export.manifest import Index
from keyturn_workers.offline.export.names import NAME_MAX_BYTES, candidates, folded, is_path
from tests.unit.keyturn_workers.offline.export.project import AT, Project

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keyturn_workers.offline.export.run import ExportReport

BIG = os.urandom(3 * 2**20 + 5)


def _first(segment: str) -> str:
    return next(candidates(segment, segment))


@pytest.mark.parametrize(
    ("segment", "name"),
    [
        ("README.md", "README.md"),
        (".env", ".env"),
        ("größe 100%.txt", "größe 100%.txt"),
        ("a:b", "a%3Ab"),
        ('<>"|?*\\', "%3C%3E%22%7C%3F%2A%5C"),
        ("\u202egnp.exe", "%202Egnp.exe"),
        ("dots...", "dots..%2E"),
        ("space ", "space%20"),
        ("con", "_con"),
        ("Con.txt", "_Con.txt"),
        ("nul .tar.gz", "_nul .tar.gz"),
        ("com¹", "_com¹"),
        ("console", "console"),
    ],
)
def test_a_name_is_kept_unless_some_file_system_does_not_hold_it(segment: str, name: str) -> None:
    assert _first(segment) == name


@pytest.mark.parametrize("segment", ["x" * 900, "ü" * 450, "y" * 240 + ".jpeg", "." + "z" * 300])
def test_a_long_name_is_cut_and_keeps_its_extension(segment: str) -> None:
    names = list(islice(candidates(segment, segment), 3))
    assert len(set(names)) == 3
    assert all(len(name.encode()) <= NAME_MAX_BYTES for name in names)
    if segment.endswith(".jpeg"):
        assert all(name.endswith(".jpeg") for name in names)


def _paths(*keys: str, existing: tuple[str, ...] = ()) -> list[str]:
    with closing(Index()) as index:
        return [index.path_for(key, lambda path: path not in existing) for key in keys]


TAG = "~[0-9a-f]{12}"


@pytest.mark.parametrize(
    ("keys", "second"),
    [
        (("a.txt", "A.TXT"), rf"A{TAG}\.TXT"),
        (("é", "e\u0301"), f"e\u0301{TAG}"),
        (("straße", "STRASSE"), f"STRASSE{TAG}"),
        (("a", "a/b"), f"a{TAG}/b"),
        (("a/b", "a"), f"a{TAG}"),
        (("A/b", "a/c"), f"a{TAG}/c"),
        (("a/b", "A/b"), f"A{TAG}/b"),
        (("x:y", "x%3Ay"), f"x%3Ay{TAG}"),
        (("con", "_con"), f"_con{TAG}"),
    ],
)
def test_a_second_key_for_one_file_gets_a_name_of_its_own(
    keys: tuple[str, str], second: str
) -> None:
    first, other = _paths(*keys)
    assert re.fullmatch(second, other)
    assert folded(first) != folded(other)


def test_all_below_a_renamed_folder_are_in_one_folder() -> None:
    _, one, other = _paths("a", "a/1", "a/2")
    assert one.partition("/")[0] == other.partition("/")[0] != "a"


def test_a_key_cannot_take_the_name_that_another_one_will_get() -> None:
    (taken,) = _paths("a.txt", "A.txt")[1:]
    assert len({folded(path) for path in _paths(taken, "a.txt", "A.txt")}) == 3


def test_a_file_that_is_not_of_the_export_is_not_overwritten() -> None:
    (path,) = _paths("a", existing=("a",))
    assert re.fullmatch(f"a{TAG}", path)


def test_a_key_keeps_its_path() -> None:
    keys = ("a", "A", "a/b")
    with closing(Index()) as index:
        paths = [[index.path_for(key, lambda _: True) for key in keys] for _ in range(2)]
    assert paths[0] == paths[1]


KEYS = st.lists(
    st.text(
        st.sampled_from("aA/.:~% \\éß\u0301k") | st.characters(codec="utf-8"), max_size=12
    ).filter(is_object_key),
    unique=True,
    max_size=12,
)


@given(KEYS)
def test_any_keys_have_different_safe_paths_of_as_many_parts(keys: list[str]) -> None:
    with closing(Index()) as index:
        paths = [index.path_for(key, lambda _: True) for key in keys]
    folders: set[str] = set()
    files: set[str] = set()
    for key, path in zip(keys, paths, strict=True):
        assert is_path(path)
        assert path.count("/") == key.count("/")
        assert not re.search(r'[<>:"\\|?*\x00-\x1f]|[. ](/|\Z)', path)
        assert folded(path) not in files
        files.add(folded(path))
        parts = folded(path).split("/")
        folders |= {"/".join(parts[:end]) for end in range(1, len(parts))}
    assert not files & folders


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new" / "out"


async def _export(project: Project, target: Path) -> ExportReport:
    with Folder.open(target, "acme") as folder:
        return await project.export(folder)


def _files(target: Path) -> dict[str, bytes]:
    found = (path for path in target.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in found}


def _manifest(target: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (target / MANIFEST_FILE).read_text().splitlines()]


async def test_every_object_is_a_file_and_a_line(target: Path) -> None:
    project = Project({"a/b.bin": BIG, "empty": b"", "x": b"1"}, metadata={"author": "é"})
    report = await _export(project, target)
    assert (report.exported, report.already_there, report.failures) == (3, 0, [])
    assert report.size_bytes == project.bytes_seen == len(BIG) + 1
    assert _files(target) == project.objects
    first, *lines = _manifest(target)
    assert first == {"export": 1, "project": "acme"}
    assert {str(line["key"]): line for line in lines}["a/b.bin"] == {
        "key": "a/b.bin",
        "path": "a/b.bin",
        "size": len(BIG),
        "sha256": hashlib.sha256(BIG).hexdigest(),
        "content_type": "text/plain",
        "metadata": {"author": "é"},
        "last_modified": "2026-11-24T10:00:00Z",
    }
    status = (target / "a/b.bin").stat()
    assert (status.st_mode & 0o777, status.st_mtime) == (0o600, AT.timestamp())
    assert (target / "a").stat().st_mode & 0o777 == 0o700
    assert not (target / ".keyturn-partial").exists()


async def test_the_index_is_closed_with_the_export(target: Path) -> None:
    with Folder.open(target, "acme") as folder:
        assert await folder.size_of("a") is None
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        await folder.size_of("a")


async def test_metadata_that_is_no_text_does_not_end_the_export(target: Path) -> None:
    """`=?unknown-8bit?b?/w==?=` of a bucket writer decodes to this."""
    report = await _export(Project({"a": b"1"}, metadata={"author": "\udcff"}), target)
    assert (report.exported, report.failures) == (1, [])
    assert _manifest(target)[1]["metadata"] == {"author": "\\udcff"}


async def test_a_second_run_reads_only_what_is_new(target: Path) -> None:
    project = Project({"a": b"1", "A": b"2", "b/c": b"3"})
    await _export(project, target)
    files = _files(target)
    project.objects |= {"B/d": b"4", "c": b"5"}
    report = await _export(project, target)
    assert sorted(project.opened) == ["B/d", "c"]
    assert (report.exported, report.already_there, report.size_bytes) == (2, 3, 5)
    assert files.items() < _files(target).items()
    assert sorted(_files(target).values()) == [b"1", b"2", b"3", b"4", b"5"]


@pytest.mark.parametrize("damage", ["missing", "shorter", "folder removed"])
async def test_a_file_that_is_not_whole_is_read_again(target: Path, damage: str) -> None:
    """As after a power failure: the line is there, the file or its bytes are not."""
    project = Project({"a/b": BIG, "c": b"1"})
    await _export(project, target)
    if damage == "shorter":
        os.truncate(target / "a/b", 100)
    else:
        (target / "a/b").unlink()
    if damage == "folder removed":
        (target / "a").rmdir()
    await _export(project, target)
    assert project.opened == ["a/b"]
    assert _files(target) == project.objects


async def test_the_rest_of_a_killed_run_is_taken_away(target: Path) -> None:
    project = Project({"a": b"1", "b": b"2"})
    await _export(project, target)
    (target / ".keyturn-partial").mkdir()
    (target / ".keyturn-partial" / "17").write_bytes(b"half")
    with (target / MANIFEST_FILE).open("ab") as manifest:
        manifest.write(b'{"key": "c", "pa')
    project.objects["c"] = b"3"
    await _export(project, target)
    assert project.opened == ["c"]
    assert _files(target) == project.objects
    assert sorted(str(line["key"]) for line in _manifest(target)[1:]) == ["a", "b", "c"]


async def test_keys_with_the_names_of_the_exports_own_files(target: Path) -> None:
    project = Project(
        {MANIFEST_FILE: b"1", ".keyturn-partial/0": b"2", "KEYTURN-manifest.jsonl": b"3"}
    )
    report = await _export(project, target)
    assert report.failures == []
    paths = {line["key"]: target / str(line["path"]) for line in _manifest(target)[1:]}
    assert {key: path.read_bytes() for key, path in paths.items()} == project.objects


@contextmanager
def _another_export(target: Path) -> Iterator[None]:
    with Folder.open(target, "acme"):
        yield


@contextmanager
def _file(target: Path, name: str, content: bytes) -> Iterator[None]:
    target.mkdir(parents=True)
    (target / name).write_bytes(content)
    yield


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("other file", "is not empty, and has no keyturn-manifest.jsonl to continue from"),
        ("other project", "does not belong to an export of acme"),
        ("garbage", "line 2 of .* is not valid"),
        ("path outside", "line 2 of .* is not valid"),
        ("another process", "another process exports to"),
    ],
)
def test_a_folder_that_is_no_place_for_it_is_refused(target: Path, what: str, text: str) -> None:
    first = b'{"export": 1, "project": "acme"}\n'
    outside = {"key": "a", "path": "../a", "size": 1, "sha256": "0" * 64}
    scenes = {
        "other file": _file(target, "photo.jpg", b""),
        "other project": _file(target, MANIFEST_FILE, b'{"export": 1, "project": "beta"}\n'),
        "garbage": _file(target, MANIFEST_FILE, first + b"{}\n"),
        "path outside": _file(target, MANIFEST_FILE, first + json.dumps(outside).encode() + b"\n"),
        "another process": _another_export(target),
    }
    with scenes[what], pytest.raises(ExportError, match=text), Folder.open(target, "acme"):
        pass


async def test_no_link_leads_out_of_the_folder(target: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    project = Project({"first": b"1"})
    await _export(project, target)
    (target / "way").symlink_to(outside)
    (target / "file").symlink_to(outside / "made")
    (target / "first").unlink()
    (target / "first").symlink_to(outside / "kept")
    project.objects |= {"way/out": b"2", "file": b"3"}
    report = await _export(project, target)
    assert [(f["key"], f["code"]) for f in report.failures] == [("way/out", "not_a_directory")]
    assert [path.name for path in outside.iterdir()] == ["kept"]
    assert (outside / "kept").read_bytes() == b"kept"
    # A link in the place of a file is not written through: the file has another name then.
    paths = {line["key"]: target / str(line["path"]) for line in _manifest(target)[1:]}
    assert (paths["file"].read_bytes(), paths["first"].read_bytes()) == (b"3", b"1")
    assert paths["first"] == target / "first"
    assert not paths["first"].is_symlink()


def test_a_manifest_that_is_a_link_is_not_written(target: Path, tmp_path: Path) -> None:
    target.mkdir(parents=True)
    (target / MANIFEST_FILE).symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="symbolic links"), Folder.open(target, "acme"):
        pass
    assert not (tmp_path / "outside").exists()


async def test_a_full_disk_ends_the_run_and_leaves_no_half_file(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project({"a": b"1", "b": BIG, "c": b"3"})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("keyturn_workers.offline.export.folder.os.fsync", full)
    with pytest.raises(ExceptionGroup) as raised:
        await _export(project, target)
    assert all(isinstance(exc, OSError) for exc in raised.value.exceptions)
    monkeypatch.undo()
    assert _files(target) == {}
    await _export(project, target)
    assert _files(target) == project.objects


async def test_half_a_line_is_taken_back(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk; another object's line may be written before the run ends."""
    project = Project({"a": b"1", "b": b"2"})
    write, cut = os.write, 0

    def write_half_once(descriptor: int, data: bytes) -> int:
        nonlocal cut
        cut += b'"key"' in data
        return write(descriptor, data[: len(data) // 2] if cut == 1 else data)

    monkeypatch.setattr("keyturn_workers.offline.export.folder.os.write", write_half_once)
    with pytest.raises(ExceptionGroup):
        await _export(project, target)
    await _export(project, target)
    assert cut == 3
    assert sorted(str(line["key"]) for line in _manifest(target)[1:]) == ["a", "b"]
    assert _files(target) == project.objects
