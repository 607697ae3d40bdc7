"""The paths of sweeps' records are built and parsed in one place (SPEC 5.1, 8.5)."""

from __future__ import annotations

import pytest

from keyturn.identifiers import SWEEPS_PREFIX
from keyturn_workers.sweep import record_paths
from keyturn_workers.sweep.record_paths import RecordPath, parse_record_path, parse_running_marker

SWEEP_ID = "2f6c9a0e-1111-4111-8111-111111111111"
FOLDER = f"{SWEEPS_PREFIX}{SWEEP_ID}/acme/"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (record_paths.plan_path(SWEEP_ID, "acme"), f"{FOLDER}sweep.json"),
        (record_paths.plan_path(SWEEP_ID, "*"), f"{SWEEPS_PREFIX}{SWEEP_ID}/_all/sweep.json"),
        (
            record_paths.result_path(SWEEP_ID, "acme", 1, 2, 3),
            f"{FOLDER}results/000001-00000002-000003.json",
        ),
        (
            record_paths.failures_path(SWEEP_ID, "acme", 1, 2),
            f"{FOLDER}failures/000001-00000002.json",
        ),
        (
            record_paths.part_result_path(SWEEP_ID, "acme"),
            f"{SWEEPS_PREFIX}{SWEEP_ID}/_all/done/acme.json",
        ),
        (record_paths.running_marker(SWEEP_ID, "acme"), f"{SWEEPS_PREFIX}_running/{SWEEP_ID}/acme"),
        (record_paths.running_marker(SWEEP_ID, "*"), f"{SWEEPS_PREFIX}_running/{SWEEP_ID}/_all"),
    ],
)
def test_a_path_has_the_form_of_the_specification(path: str, expected: str) -> None:
    assert path == expected


@pytest.mark.parametrize("project", ["acme", "*"])
def test_what_is_built_is_parsed(project: str) -> None:
    plan = parse_record_path(record_paths.plan_path(SWEEP_ID, project))
    assert plan == RecordPath(SWEEP_ID, project, "sweep.json")
    assert (plan.is_plan, plan.is_result, plan.attempt) == (True, False, None)
    result = parse_record_path(record_paths.result_path(SWEEP_ID, project, 1, 2, 3))
    assert result is not None
    assert (result.is_plan, result.is_result, result.attempt) == (False, True, (1, 2, 3))
    note = parse_record_path(record_paths.new_tags_path(SWEEP_ID, project, 1, 2, 3))
    assert note is not None
    assert (note.is_plan, note.is_result, note.attempt) == (False, False, None)
    marker = record_paths.running_marker(SWEEP_ID, project)
    assert parse_running_marker(marker) == (SWEEP_ID, project)
    assert parse_record_path(marker) is None


def test_two_tag_notes_of_one_attempt_have_two_paths() -> None:
    paths = {record_paths.new_tags_path(SWEEP_ID, "acme", 0, 1, 2) for _ in range(2)}
    assert len(paths) == 2
    prefix = record_paths.tags_prefix(SWEEP_ID, "acme", 0, 1)
    assert all(path.startswith(prefix) for path in paths)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        f"{SWEEP_ID}",
        f"{SWEEP_ID}/",
        f"{SWEEP_ID}/ACME/sweep.json",
        f"{SWEEP_ID}/../acme/sweep.json",
        f"{SWEEP_ID.upper()}/acme/sweep.json",
        f"_running/{SWEEP_ID}/acme",
    ],
)
def test_any_other_name_is_no_record(name: str) -> None:
    assert parse_record_path(SWEEPS_PREFIX + name) is None
    assert parse_record_path(f"acme/{name}") is None


@pytest.mark.parametrize(
    "name", ["x", f"{SWEEP_ID}/../../keyrings/acme.json", f"{SWEEP_ID}/", "../acme/k"]
)
def test_a_forged_marker_names_no_sweep(name: str) -> None:
    assert parse_running_marker(record_paths.RUNNING_PREFIX + name) is None


def test_the_name_of_a_parts_result_is_its_project() -> None:
    path = record_paths.part_result_path(SWEEP_ID, "acme")
    assert record_paths.parse_part_name(SWEEP_ID, path) == "acme"
