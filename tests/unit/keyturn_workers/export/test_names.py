"""Names of files for keys: what every file system holds, and no two for one file."""

from __future__ import annotations

import re
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.identifiers import is_object_key
from keyturn_workers.export.manifest import Index
from keyturn_workers.export.names import NAME_MAX_BYTES, candidates, folded, is_path


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
    index = Index()
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
    index = Index()
    paths = [[index.path_for(key, lambda _: True) for key in ("a", "A", "a/b")] for _ in range(2)]
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
    index = Index()
    folders: set[str] = set()
    files: set[str] = set()
    for key in keys:
        path = index.path_for(key, lambda _: True)
        assert is_path(path)
        assert path.count("/") == key.count("/")
        assert not re.search(r'[<>:"\\|?*\x00-\x1f]|[. ](/|\Z)', path)
        assert folded(path) not in files
        files.add(folded(path))
        parts = folded(path).split("/")
        folders |= {"/".join(parts[:end]) for end in range(1, len(parts))}
    assert not files & folders
