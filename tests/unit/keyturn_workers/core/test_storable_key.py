"""Keys that a bucket would take for another's, or hide, are refused (SPEC 1, 8.5)."""

from __future__ import annotations

import pytest

from keyturn.errors import MalformedRequestError
from keyturn_workers.core.storable_key import check_storable, is_alias
from keyturn_workers.core.storage_values import Capabilities

S3 = Capabilities()
PATHS = Capabilities(keys_are_paths=True)
HIDES = Capabilities(unlisted_names=True)


@pytest.mark.parametrize("key", ["a\\b", "a.versions/b", ".uploads/b", "a/.uploads", "a/b"])
def test_on_s3_every_key_is_its_own(key: str) -> None:
    check_storable(key, S3)
    assert not is_alias(key, S3)


def test_a_backslash_is_refused_where_it_is_a_slash() -> None:
    assert is_alias("a\\b", PATHS)
    with pytest.raises(MalformedRequestError, match="backslash"):
        check_storable("a\\b", PATHS)
    check_storable("a\\b", HIDES)
    check_storable("a.versions/b", PATHS)


@pytest.mark.parametrize(
    ("key", "is_hidden"),
    [
        ("a.versions/b", True),
        (".uploads/b", True),
        ("a/.uploads-2/b", True),
        ("a/b.versions", True),
        ("a.versions.txt", False),
        ("uploads/b", False),
        ("versions/b", False),
    ],
)
def test_a_name_that_is_not_listed_is_refused(key: str, *, is_hidden: bool) -> None:
    """A sweep would miss what is below it, and prove without it."""
    if not is_hidden:
        check_storable(key, HIDES)
        return
    with pytest.raises(MalformedRequestError, match="reserves names"):
        check_storable(key, HIDES)


@pytest.mark.parametrize("name", ["x" * 246, "é" * 123])
def test_a_name_of_246_bytes_has_room(name: str) -> None:
    """Nine more are needed for the folder of its versions."""
    check_storable(f"a/{name}", PATHS)
    check_storable(f"a/{name}x", S3)
    for key in (f"{name}x", f"a/{name}x", f"{name}x/a"):
        with pytest.raises(MalformedRequestError, match="246 bytes"):
            check_storable(key, PATHS)
