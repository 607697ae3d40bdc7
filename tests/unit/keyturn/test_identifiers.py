"""Projects, object keys, ids, times and the S3 keys of records (SPEC 1)."""

import hashlib
import unicodedata
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.identifiers import (
    ALL_PROJECTS,
    ALL_PROJECTS_FOLDER,
    OWN_PREFIX,
    TIME_PATTERN,
    check_object_key,
    evidence_s3_key,
    format_time,
    has_control_characters,
    is_object_key,
    is_project,
    is_short_name,
    is_uuid,
    keyring_s3_key,
    object_s3_key,
    parse_evidence_name,
    parse_time,
    staging_s3_key,
)
from keyturn.upload_ids import copy_upload_id, source_upload_id

_key_text = st.text(st.sampled_from("a/.ü\u0000\x7f\u2028 -") | st.characters(), max_size=40)


@given(_key_text)
def test_keys_are_what_spec_1_allows(key: str) -> None:
    """The rule of SPEC 1 in other words than the implementation's."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        size = 0
    allowed = (
        1 <= size <= 900
        and not any(unicodedata.category(c) == "Cc" for c in key)
        and not key.startswith("/")
        and not key.endswith("/")
        and not {"", ".", ".."} & set(key.split("/"))
    )
    assert is_object_key(key) is allowed
    if allowed:
        assert check_object_key(key) == key
    else:
        with pytest.raises(ValueError, match="key"):
            check_object_key(key)


@pytest.mark.parametrize(("key", "allowed"), [("ü" * 450, True), ("ü" * 450 + "a", False)])
def test_a_key_is_measured_in_bytes(key: str, allowed: bool) -> None:
    assert is_object_key(key) is allowed


def test_the_names_for_all_projects_are_no_project() -> None:
    assert not is_project(ALL_PROJECTS)
    assert not is_project(ALL_PROJECTS_FOLDER)


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_survive_a_round_trip(instant: datetime) -> None:
    assert parse_time(format_time(instant)) == instant


@pytest.mark.slow
@given(st.text(max_size=32) | st.from_regex(TIME_PATTERN))
def test_a_time_is_read_or_refused_with_a_value_error(text: str) -> None:
    instant = None
    with suppress(ValueError):
        instant = parse_time(text)
    if instant is not None:
        assert format_time(instant)[:19] == text[:19]


@pytest.mark.parametrize(
    ("check", "allowed", "refused"),
    [
        (is_project, ["a", "0", "a-b", "a" * 63], ["", "-a", "A", "a_b", "a/b", "a\n", "a" * 64]),
        (is_short_name, ["a", "-", "m1", "a" * 32], ["", "A", "a_b", "a.b", "a\n", "a" * 33]),
        (
            is_uuid,
            ["2f6c9a0e-0000-4000-8000-000000000001", "0" * 8 + "-0000" * 3 + "-" + "0" * 12],
            ["", "2F6C9A0E-0000-4000-8000-000000000001", "2f6c9a0e000040008000000000000001"],
        ),
    ],
)
def test_a_name_is_what_the_specification_allows(
    check: Callable[[str], bool], allowed: list[str], refused: list[str]
) -> None:
    assert [check(text) for text in allowed] == [True] * len(allowed)
    assert [check(text) for text in refused] == [False] * len(refused)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", False),
        ("a b", False),
        ("é\u2028", False),
        ("a\n", True),
        ("é\x7f", True),
        ("\x85", True),
    ],
)
def test_control_characters_are_found(text: str, found: bool) -> None:
    assert has_control_characters(text) is found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-24T10:00:00Z", "2026-11-24T10:00:00.000000Z"),
        ("2026-11-24T10:00:00.5Z", "2026-11-24T10:00:00.500000Z"),
        ("0999-01-01T00:00:00Z", "0999-01-01T00:00:00.000000Z"),
    ],
)
def test_a_time_is_written_to_the_microsecond(text: str, expected: str) -> None:
    assert format_time(parse_time(text)) == expected


def test_a_time_of_another_zone_is_written_in_utc() -> None:
    instant = datetime(2026, 11, 24, 11, tzinfo=timezone(timedelta(hours=1)))
    assert format_time(instant) == "2026-11-24T10:00:00.000000Z"


def test_records_and_staged_bodies_are_outside_of_every_project() -> None:
    assert object_s3_key("acme", "a/b") == "acme/a/b"
    assert keyring_s3_key("acme") == ".keyturn/keyrings/acme.json"
    assert staging_s3_key("api", "id") == ".keyturn/staging/api/id"
    assert not is_project(OWN_PREFIX.rstrip("/"))


def test_the_name_of_evidence_reads_back() -> None:
    sweep_id = "2f6c9a0e-0000-4000-8000-000000000001"
    s3_key = evidence_s3_key("acme", 12, sweep_id)
    assert s3_key == f".keyturn/evidence/acme/12-{sweep_id}.json"
    name = s3_key.rpartition("/")[2]
    assert parse_evidence_name(name) == (12, sweep_id)
    for other in (name + "x", "0" + name, f"-{sweep_id}.json", f"0-{sweep_id}.json", "12-x.json"):
        assert parse_evidence_name(other) is None


def test_the_id_of_a_sources_object_is_that_of_the_specification() -> None:
    """By SPEC 17.2, from the bytes alone."""
    named = b"keyturn/v1/source\0prod\0drop\0in/\xc3\xbc.txt\0abc-2\x00v1"
    digits = hashlib.sha256(named).hexdigest()[:32]
    variant = "89ab"[int(digits[16], 16) % 4]
    expected = (
        f"{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
    )
    found = source_upload_id("prod", "drop", "in/ü.txt", "abc-2", "v1")
    assert found == expected == "33df02d8-06f4-8ffa-92cc-eea8125d89aa"
    assert is_uuid(found)
    assert uuid.UUID(found).variant == uuid.RFC_4122
    unversioned = source_upload_id("prod", "drop", "in/ü.txt", "abc-2")
    assert unversioned == source_upload_id("prod", "drop", "in/ü.txt", "abc-2", "") != found


def test_the_id_of_a_copy_is_that_of_the_specification() -> None:
    """By SPEC 18, from the bytes alone."""
    named = b'keyturn/v1/copy\0prod\0acme\0acme2\0a/\xc3\xbc.txt\0"abc"'
    digits = hashlib.sha256(named).hexdigest()[:32]
    found = copy_upload_id("prod", "acme", "acme2", "a/ü.txt", '"abc"')
    assert is_uuid(found)
    assert (uuid.UUID(found).version, uuid.UUID(found).variant) == (8, uuid.RFC_4122)
    plain = found.replace("-", "")
    assert (plain[:12], plain[13:16], plain[17:]) == (digits[:12], digits[13:16], digits[17:])
    assert found != copy_upload_id("prod", "acme2", "acme", "a/ü.txt", '"abc"')


@given(st.tuples(*(st.text(st.sampled_from("ab/\0"), max_size=3) for _ in range(5))))
def test_no_two_objects_of_sources_share_an_id(parts: tuple[str, str, str, str, str]) -> None:
    """A zero byte could move the border between two parts: it is refused."""
    if any("\0" in part for part in parts):
        with pytest.raises(ValueError, match="zero byte"):
            source_upload_id(*parts)
        return
    moved = (parts[0] + parts[1], "", parts[2], parts[3], parts[4])
    assert (source_upload_id(*parts) == source_upload_id(*moved)) == (parts == moved)
