"""Each harness on a small budget: seeds, random and structured input, and earlier findings.

The engine that is led by coverage runs the same harnesses (`make fuzz`); what it finds is
put into `found/HARNESS/`, and is tried here from then on.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.errors import BadSealError, CorruptObjectError
from tests.fuzz.harness import Harness, OracleError, at_random, check, code_of, one
from tests.fuzz.harnesses import ALL, bodies, metadata, objects, records
from tests.fuzz.watch import MAX_CPU_S, MAX_FINDINGS, Clock, Watch

_FOUND = Path(__file__).parent / "found"
_FILES = sorted(path for path in _FOUND.glob("*/*") if path.is_file())
_COUNTS = {"object": 1_500, "sealed": 1_500, "amqp": 2_000}
_COUNT = 6_000


@pytest.mark.parametrize("name", ALL)
def test_at_random(name: str) -> None:
    """An error with a code, or the right value: nothing else, in no time, from any bytes."""
    report = at_random(ALL[name], seed=1, count=_COUNTS.get(name, _COUNT))
    assert report.findings == []
    assert report.inputs == _COUNTS.get(name, _COUNT)


@pytest.mark.parametrize("name", ALL)
def test_seeds_get_deep(name: str) -> None:
    """The seeds are valid: each harness opens or reads some of them."""
    refused = {"refused", "corrupt_object", "malformed_request", "no frame", "too short", "no key"}
    outcomes = {ALL[name].run(seed) for seed in ALL[name].seeds()}
    assert outcomes - refused


@pytest.mark.parametrize("file", _FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_earlier_findings_stay_fixed(file: Path) -> None:
    ALL[file.parent.name].run(file.read_bytes())


def test_a_finding_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception, a wrong value and a slow input are reported, with the input."""
    monkeypatch.setattr("tests.fuzz.watch.ROOT", tmp_path)
    monkeypatch.setattr("tests.fuzz.watch.FOLDER", tmp_path)

    def broken(data: bytes) -> str:
        if data == b"slow":
            _work(2 * MAX_CPU_S)
        check(data != b"wrong", "another plaintext")
        return str({b"slow": "slow"}[data])

    watch = Watch("broken", 1)
    for data in (b"wrong", b"raises", b"slow"):
        one(watch, Harness("broken", broken, list), data)
    problems = [found.what for found in watch.report.findings]
    assert len(problems) == 3
    assert "another plaintext" in problems[0]
    assert "KeyError" in problems[1]
    assert "ms of CPU" in problems[2]
    kept = [(tmp_path / found.file).read_bytes() for found in watch.report.findings]
    assert kept == [b"wrong", b"raises", b"slow"]


def _work(cpu_s: float) -> None:
    clock = Clock()
    while clock.passed_s() < cpu_s:
        hash("")


def test_the_number_of_findings_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.watch.ROOT", tmp_path)
    monkeypatch.setattr("tests.fuzz.watch.FOLDER", tmp_path)

    def broken(data: bytes) -> str:
        raise OracleError(repr(data))

    report = at_random(Harness("broken", broken, lambda: [b"a"]), 1, 1000)
    assert len(report.findings) == MAX_FINDINGS


def test_a_secret_that_is_shown_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.watch.ROOT", tmp_path)
    monkeypatch.setattr("tests.fuzz.watch.FOLDER", tmp_path)
    watch = Watch("secrets", 1, [b"the secret of this test, long enough"])
    watch.check_text("nothing", lambda: b"1")
    watch.check_text(f"detail: {b'the secret of this test, long enough'.hex()}", lambda: b"2")
    (found,) = watch.finish().findings
    assert (tmp_path / found.file).read_bytes() == b"2"


def test_an_unexpected_error_code_is_a_finding() -> None:

    assert code_of(CorruptObjectError(), "corrupt_object") == "corrupt_object"
    with pytest.raises(OracleError):
        code_of(BadSealError(), "corrupt_object")


# Properties of readers, shape by shape (SPEC 4, 5, 8.5, 13). The harnesses are the judges: an error
# with a code, or the right value.


_EXAMPLES: Final = 150
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
_KEYRING: Final = next(s for s in records.HARNESS.seeds() if s[0] == 1)
_SWEEPS: Final = [s for s in records.HARNESS.seeds() if s[0] == 2]
_OBJECTS: Final = [s[1:].partition(b"\n\n") for s in objects.HARNESS.seeds()[::4]]
_METADATA: Final = [metadata.read_lines(described) for described, _, _ in _OBJECTS]
_steps = st.tuples(st.integers(0, 7), *(st.integers(0, 255),) * 3)


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Every position of a value in a document."""
    inner = document.items() if isinstance(document, dict) else enumerate(document)
    found = []
    for name, value in inner:
        found.append((document, name))
        if isinstance(value, dict | list):
            found += _places(value)
    return found


def _changed(seed: bytes, data: st.DataObject) -> bytes:
    """The record with one or two values replaced, at any position."""
    document = json.loads(seed[1:])
    for _ in range(data.draw(st.integers(1, 2))):
        places = _places(document)
        place, name = data.draw(st.sampled_from(places))
        others = st.sampled_from([where[other] for where, other in places])
        place[name] = copy.deepcopy(data.draw(_values | st.integers(0, 9) | others))
    return seed[:1] + json.dumps(document).encode()


@settings(max_examples=_EXAMPLES, deadline=None)
@given(st.data())
def test_a_keyring_with_any_value_anywhere(data: st.DataObject) -> None:
    """One that opens and is not what it must be is corrupt, and shows no key."""
    outcome = records.run(_changed(_KEYRING, data))
    assert outcome in ("corrupt_object", "sealed keyring")


@settings(max_examples=_EXAMPLES, deadline=None)
@given(st.sampled_from(_SWEEPS), st.data())
def test_a_sweeps_record_with_any_value_anywhere(seed: bytes, data: st.DataObject) -> None:
    assert records.run(_changed(seed, data))


@settings(max_examples=_EXAMPLES, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 3000))
def test_a_record_with_any_bytes_in_it(put: bytes, at: int) -> None:
    """Raw, it is the keyring that was written, or refused."""
    raw = records.HARNESS.seeds()[0]
    at = 1 + at % len(raw)
    outcome = records.run(raw[:at] + put + raw[at + len(put) :])
    assert outcome in ("corrupt_object", "unknown_master_key", "keyring")


@settings(max_examples=_EXAMPLES, deadline=None)
@given(st.integers(0, 6), st.lists(_steps, max_size=6), st.integers(0, 255), st.integers(0, 255))
def test_a_body_in_which_chunks_were_moved(
    size: int, steps: list[tuple[int, ...]], first: int, step: int
) -> None:
    """Cut, doubled, swapped, flipped, of another body: whole, stream and chunks agree on it."""
    program = bytes([1, first, step, size, *(number for one in steps for number in one)])
    outcome = bodies.run_sealed(program)
    assert outcome == "opened" if not steps else outcome in ("opened", "refused")


@settings(max_examples=_EXAMPLES, deadline=None)
@given(st.integers(0, 5100), st.integers(0, 300), st.binary(max_size=40))
def test_a_body_of_the_earlier_system_with_any_bytes_in_it(at: int, cut: int, put: bytes) -> None:
    wrap, _, body = bodies.V0.seeds()[0].partition(b"\n")
    changed = body[:at] + put + body[at + cut :]
    expected = "opened" if changed == body else "corrupt_object"
    assert bodies.run_v0(wrap + b"\n" + changed) == expected


@pytest.mark.parametrize("settings_byte", range(2), ids=["strict", "plaintext"])
@settings(max_examples=_EXAMPLES, deadline=None)
@given(st.data())
def test_an_object_with_metadata_of_others(settings_byte: int, data: st.DataObject) -> None:
    """Values left out, made up, or taken from other objects; the body of any of them, damaged."""
    described = dict(data.draw(st.sampled_from(_METADATA)))
    for _ in range(data.draw(st.integers(0, 3))):
        name = data.draw(st.sampled_from(sorted({n for one in _METADATA for n in one})))
        value = data.draw(
            st.sampled_from([one[name] for one in _METADATA if name in one])
            | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
            | st.none()
        )
        described.pop(name, None) if value is None else described.update({name: value})
    body = bytearray(data.draw(st.sampled_from([body for _, _, body in _OBJECTS])))
    if body and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(body) - 1))
        if data.draw(st.booleans()):
            body[at] ^= data.draw(st.integers(1, 255))
        else:
            del body[at:]
    assert objects.run(bytes([settings_byte]) + metadata.lines(described) + b"\n\n" + body)
