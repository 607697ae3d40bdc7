"""The suite itself: no test is lost, and none fails because the machine is busy."""

from __future__ import annotations

import time
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import order

_ROOT = Path(__file__).parents[2]
_CONSOLE = "tests/integration/console/"
_NAMES = [
    *(f"tests/acceptance/test_{module}.py::test[{n}]" for module in "abc" for n in range(4)),
    *(f"{_CONSOLE}test_{module}.py::test[{n}]" for module in "abc" for n in range(4)),
    *(f"tests/integration/cli/test_{module}.py::test[{n}]" for module in "abc" for n in range(4)),
    *(f"tests/unit/test_{module}.py::test[{n}]" for module in "abcdef" for n in range(30)),
]


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
def test_each_test_is_there_once_and_long_modules_are_whole(processes: int) -> None:
    found = [_NAMES[index] for index in order.spread(_NAMES, processes)]
    assert sorted(found) == sorted(_NAMES)
    modules = [name for name, _ in groupby(found, key=lambda name: name.partition("::")[0])]
    long = [name for name in modules if "/unit/" not in name]
    assert len(long) == len(set(long))
    places = [index for index, name in enumerate(found) if name.startswith(_CONSOLE)]
    assert places == list(range(places[0], places[0] + 12))


def test_each_process_begins_with_long_modules_and_ends_with_short_tests() -> None:
    found = [_NAMES[index] for index in order.spread(_NAMES, 4)]
    share = len(_NAMES) // 4
    assert found[0].startswith(_CONSOLE)
    for begin in range(0, share * 4, share):
        kinds = ["/unit/" in name for name in found[begin : begin + share]]
        assert not kinds[0]
        assert kinds == sorted(kinds)


def test_what_is_named_exists() -> None:
    assert [name for name in order.modules() if not (_ROOT / name).exists()] == []


def test_no_two_test_modules_have_one_name() -> None:
    """Pytest names a module from the topmost package on: of two with one name, one would not run.

    So a folder of tests that has packages in it is a package itself.
    """
    tests = _ROOT / "tests"
    for package in tests.rglob("__init__.py"):
        for folder in package.parent.relative_to(tests).parents:
            assert (tests / folder / "__init__.py").is_file(), folder


# On a busy machine, an example may take longer than Hypothesis allows by default.


@settings(max_examples=1)
@given(st.just(0.25))
def test_a_slow_example_does_not_fail(delay_s: float) -> None:
    time.sleep(delay_s)


def test_examples_that_are_slow_to_make_do_not_fail() -> None:
    assert HealthCheck.too_slow in settings().suppress_health_check
