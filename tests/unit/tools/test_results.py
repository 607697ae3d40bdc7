"""The page of results is made from its data, and from no other release's."""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tools import results

ROW = {
    "figure": "4 KiB uploads",
    "server": "ceph",
    "unit": "objects/s",
    "ours": {"min": 800.0, "median": 850.0, "max": 900.0, "rounds": [800.0, 850.0, 900.0]},
    "theirs": {"min": 800.0, "median": 800.0, "max": 800.0, "rounds": [800.0]},
    "against": "bare puts",
    "ratio": {"min": 1.0, "median": 1.06, "max": 1.13, "rounds": [1.0, 1.06, 1.13]},
    "aim": "≥ 1.1",
    "met": False,
}
PAGE = "".join(
    f"<!-- results: begin {name} -->\nold\n<!-- results: end {name} -->\n"
    for name in ("checks", "bench")
)


def _empty() -> dict[str, Any]:
    return {"release": "1.0", "checks": {}, "bench": {}}


def test_the_page_says_what_the_data_says() -> None:
    page = results.PAGE.read_text()
    data = json.loads(results.DATA.read_text())
    assert page == results.placed(page, data)
    assert data["release"] == version("keyturn-workers")


def test_a_missed_aim_is_shown_as_missed() -> None:
    data = _empty()
    results.take_bench(data, [{"rows": [ROW], "notes": ["Python 3.13"]}])
    page = results.placed(PAGE, data)
    dash = "\N{EN DASH}"
    assert f"| 850 (800{dash}900) objects/s | 800, bare puts | 1.06 (1{dash}1.13) |" in page
    assert "| 4 KiB uploads (ceph) |" in page
    assert "| ≥ 1.1 | **no** |\n" in page
    assert "- Python 3.13\n" in page
    assert "old" not in page


def test_a_figure_that_was_measured_twice_is_refused() -> None:
    document = {"rows": [ROW], "notes": []}
    with pytest.raises(ValueError, match="measured twice"):
        results.take_bench(_empty(), [document, document])


@pytest.mark.parametrize(("code", "status", "shown"), [("", 0, "yes"), ("exit(3)", 3, "**no**")])
def test_a_check_is_noted_however_it_ends(code: str, status: int, shown: str) -> None:
    data = _empty()
    assert results.run_check(data, "chaos", [sys.executable, "-c", code]) == status
    assert f"| {shown} |" in results.tables(data)["checks"]


def test_results_of_another_release_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    assert results.read(file, "1.0") == _empty()
    file.write_text(json.dumps({**_empty(), "checks": {"chaos": {}}}))
    assert results.read(file, "1.0")["checks"] == {"chaos": {}}
    assert results.read(file, "1.1") == {**_empty(), "release": "1.1"}


@pytest.mark.parametrize("page", ["nowhere", PAGE * 2])
def test_a_page_has_one_place_for_each_table(page: str) -> None:
    with pytest.raises(ValueError, match="places for the table"):
        results.placed(page, _empty())
