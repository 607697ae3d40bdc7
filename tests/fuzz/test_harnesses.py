"""Every harness small: its seeds, chance, and whatever was found before.

The engine that is led by coverage runs the same harnesses (`make fuzz`); what it finds is
put into `found/HARNESS/`, and is tried here from then on.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from keyturn.errors import BadSealError, CorruptObjectError
from tests.fuzz.harness import Harness, OracleError, at_random, check, code_of, one
from tests.fuzz.harnesses import ALL
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
