"""Properties of the formats, for whatever bytes and names somebody sends (SPEC 1, 4.3, 6.3)."""

import json
import unicodedata
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn import metadata
from keyturn.errors import CorruptObjectError, MalformedRequestError, UnknownAlgorithmError
from keyturn.identifiers import (
    ALL_PROJECTS,
    ALL_PROJECTS_FOLDER,
    TIME_PATTERN,
    check_object_key,
    format_time,
    is_object_key,
    is_project,
    parse_time,
    sweep_prefix,
)
from keyturn.messages import (
    COUNT_FIELDS,
    REQUEST_MODELS,
    CountedEvent,
    UploadStored,
    encode,
    identity,
    load_json,
    parse_event,
    parse_request,
    rejection,
)
from tools import generate
from tools.generate.examples import events, requests

_SEALED = json.loads((generate.ROOT / "examples" / "sealed.json").read_text("utf-8"))
_REQUESTS = [d for by_title in requests(_SEALED).values() for d in by_title.values()]
_EVENTS = [d for by_title in events().values() for d in by_title.values()]

_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_json_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_as_malformed_and_in_no_other_way(body: bytes) -> None:
    for parse in (parse_request, parse_event):
        with pytest.raises(MalformedRequestError):
            parse(body)
    assert identity(body) is None


@given(st.sampled_from(_REQUESTS + _EVENTS), st.data())
def test_any_json_in_a_field_is_taken_or_refused_as_malformed(
    valid: dict[str, Any], data: st.DataObject
) -> None:
    field = data.draw(st.sampled_from(sorted(valid)))
    body = json.dumps(valid | {field: data.draw(_json_values)}).encode()
    parse: Any = parse_request if valid["type"] in REQUEST_MODELS else parse_event
    message = None
    with suppress(MalformedRequestError):
        message = parse(body)
    if message is not None:
        assert parse(encode(message)) == message
    identity(body)


@given(_json_values)
def test_any_json_value_is_refused_as_malformed(value: Any) -> None:
    with pytest.raises(MalformedRequestError):
        parse_request(json.dumps(value).encode())


@given(st.sampled_from(_REQUESTS), st.data())
def test_a_name_twice_is_malformed_wherever_it_stands(
    valid: dict[str, Any], data: st.DataObject
) -> None:
    text = json.dumps(valid)
    places = [i for i, character in enumerate(text) if text[i : i + 2] == '{"']
    place = data.draw(st.sampled_from(places))
    end = text.index('"', place + 2)
    name = text[place + 1 : end + 1]
    twice = f"{text[: place + 1]}{name}: 0, {text[place + 1 :]}"
    with pytest.raises(MalformedRequestError, match="stands twice"):
        parse_request(twice.encode())


def test_deep_nesting_is_malformed() -> None:
    with pytest.raises(MalformedRequestError):
        load_json(b'{"a":' + b"[" * 200_000)


@pytest.mark.parametrize("valid", _REQUESTS + _EVENTS, ids=lambda d: d["type"])
def test_examples_survive_a_round_trip(valid: dict[str, Any]) -> None:
    parse: Any = parse_request if valid["type"] in REQUEST_MODELS else parse_event
    message = parse(json.dumps(valid).encode())
    assert parse(encode(message)) == message


@given(st.text(max_size=40))
def test_a_refusal_never_repeats_the_value(secret: str) -> None:
    marked = f"S3CR3T {secret}"
    for field in ("project", "requested_at", "upload_id", "sealed_key", "body", "type"):
        with pytest.raises(MalformedRequestError) as refused:
            parse_request(json.dumps(_REQUESTS[0] | {field: marked}).encode())
        assert "S3CR3T" not in str(refused.value)


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


def test_the_records_of_a_sweep_of_all_stand_beside_those_of_any_project() -> None:
    sweep_id = next(d["sweep_id"] for d in _EVENTS if d["type"] == "sweep.completed")
    assert sweep_prefix(sweep_id, "acme") == f".keyturn/sweeps/{sweep_id}/acme/"
    assert sweep_prefix(sweep_id, ALL_PROJECTS) == f".keyturn/sweeps/{sweep_id}/_all/"
    assert not is_project(ALL_PROJECTS_FOLDER)


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_survive_a_round_trip(instant: datetime) -> None:
    assert parse_time(format_time(instant)) == instant


@given(st.text(max_size=32) | st.from_regex(TIME_PATTERN))
def test_a_time_is_read_or_refused_with_a_value_error(text: str) -> None:
    instant = None
    with suppress(ValueError):
        instant = parse_time(text)
    if instant is not None:
        assert format_time(instant)[:19] == text[:19]


_values = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=60)
_caller = st.dictionaries(
    st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True).filter(lambda n: not n.startswith("enc-")),
    _values | st.sampled_from(["=?utf-8?q?no?=", " a", "a ", "=?", "", "Grüße", "a  b"]),
    max_size=4,
)


@given(_caller)
def test_callers_metadata_comes_back_from_the_wire_as_it_was(caller: dict[str, str]) -> None:
    wire = metadata.encode_caller_metadata(caller)
    for name, value in wire.items():
        assert value.isascii()
        assert value.isprintable() or value == ""
        assert name in caller
    assert metadata.decode_caller_metadata(wire | {"enc-algo": "x"}) == caller


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=40), max_size=4))
def test_any_callers_metadata_is_sent_or_refused_as_malformed(caller: dict[str, str]) -> None:
    try:
        wire = metadata.encode_caller_metadata(caller)
    except MalformedRequestError:
        return
    assert sum(len(n) + len(v) for n, v in wire.items()) <= 1024
    assert not any(name.startswith("enc-") for name in wire)


_OWN = ["enc-algo", "enc-dek-user", "enc-dek-admin", "enc-kek-user", "enc-kek-admin", "enc-upload"]
_own_values = st.text(max_size=30) | st.sampled_from(
    ["Cobblestone-256", "AES-256-GCM", "deleted", "1:9f86d081884c7d65", "0:00", "AAAA", "AAA", ""]
)


@given(
    st.dictionaries(
        st.sampled_from(_OWN) | st.text(max_size=8).map("enc-".__add__), _own_values, max_size=6
    )
)
def test_any_objects_metadata_is_sorted_or_refused_with_its_code(stored: dict[str, str]) -> None:
    try:
        envelope = metadata.parse(stored)
    except (CorruptObjectError, UnknownAlgorithmError):
        assert stored
    else:
        assert isinstance(envelope, metadata.Plaintext) is ("enc-algo" not in stored)


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=60), max_size=4))
def test_anything_stored_can_be_decoded_for_a_reader(stored: dict[str, str]) -> None:
    assert set(metadata.decode_caller_metadata(stored)) == {n for n in stored if n[:4] != "enc-"}


@given(st.integers(0, 2**53), st.integers(1, 2**53))
def test_events_survive_a_round_trip(size: int, generation: int) -> None:
    valid = next(d for d in _EVENTS if d["type"] == "upload.stored")
    event = UploadStored(**(valid | {"size": size, "generation": generation}))
    assert parse_event(encode(event)) == event


@given(st.fixed_dictionaries(dict.fromkeys(COUNT_FIELDS, st.integers(0, 2**53))), st.booleans())
def test_counts_survive_a_round_trip_as_flat_fields(counts: dict[str, int], clean: bool) -> None:
    """Whoever tells a sweep's counts and whoever reads them means the same nine (SPEC 8.6)."""
    for valid in (d for d in _EVENTS if "clean" in d):
        told = json.dumps(valid | counts | {"clean": clean}).encode()
        event = parse_event(told)
        assert isinstance(event, CountedEvent)
        assert json.loads(encode(event)) == json.loads(told)


@given(st.sampled_from(_REQUESTS), st.data())
def test_whatever_identity_reads_can_be_told_in_a_refusal(
    valid: dict[str, Any], data: st.DataObject
) -> None:
    field = data.draw(st.sampled_from(sorted(valid)))
    body = json.dumps(valid | {field: data.draw(_json_values)}).encode()
    claimed = identity(body)
    if claimed is not None:
        told = rejection(*claimed, MalformedRequestError("a reason"), _EVENTS[0]["at"])
        assert parse_event(encode(told)) == told
