"""Where the records of sweeps are stored: paths under `.keyturn/sweeps/` (SPEC 5.1, 8.5). Pure.

| path after the prefix | record |
| --- | --- |
| `{sweep_id}/{project}/sweep.json` | the plan |
| `{sweep_id}/{project}/results/{round}-{page}-{take}.json` | the result of one page attempt |
| `{sweep_id}/{project}/failures/{round}-{page}.json` | the failures of a proven page |
| `{sweep_id}/{project}/tags/{round}-{page}-{take}-{n}.json` | tags that a copy is about to drop |
| `{sweep_id}/_all/sweep.json` | the plan of a sweep of all projects |
| `{sweep_id}/_all/done/{project}.json` | the result of one of its parts |
| `_running/{sweep_id}/{project}` | a marker: the sweep runs, or its end is not published |

This is the only module that builds or parses these paths.
"""

import re
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from keyturn.identifiers import (
    ALL_PROJECTS,
    ALL_PROJECTS_FOLDER,
    SWEEPS_PREFIX,
    is_project,
    is_uuid,
    sweep_prefix,
)

PLAN_NAME: Final = "sweep.json"
# A sweep id is a UUID, so no sweep has this name.
RUNNING_PREFIX: Final = f"{SWEEPS_PREFIX}_running/"
_RESULTS: Final = "results/"
_FAILURES: Final = "failures/"
_TAGS: Final = "tags/"
_PARTS: Final = "done/"
_FAILURES_NAME: Final = re.compile(r"failures/\d{6}-\d{8}\.json")
_RESULT_NAME: Final = re.compile(r"results/(?P<round>\d{6})-(?P<page>\d{8})-(?P<take>\d{6})\.json")


@dataclass(frozen=True, slots=True)
class RecordPath:
    """The path of a record.

    Attributes:
        sweep_id: The id of the sweep.
        project: Its project, or `*`.
        name: The rest of the path, such as `sweep.json` or `failures/000000-00000001.json`.
    """

    sweep_id: str
    project: str
    name: str

    @property
    def is_plan(self) -> bool:
        """Whether it is the path of a plan."""
        return self.name == PLAN_NAME

    @property
    def is_result(self) -> bool:
        """Whether it is in the folder of page results."""
        return self.name.startswith(_RESULTS)

    @property
    def is_failures(self) -> bool:
        """Whether it is the path of a page's failures."""
        return _FAILURES_NAME.fullmatch(self.name) is not None

    @property
    def attempt(self) -> tuple[int, int, int] | None:
        """The round, page and attempt of a page result; None of any other record."""
        match = _RESULT_NAME.fullmatch(self.name)
        if match is None:
            return None
        return int(match["round"]), int(match["page"]), int(match["take"])


def parse_record_path(s3_key: str) -> RecordPath | None:
    """The path of a sweep's record; None for a marker and for anything that is no such path."""
    sweep_id, _, rest = s3_key.removeprefix(SWEEPS_PREFIX).partition("/")
    folder, _, name = rest.partition("/")
    project = _project_of(folder)
    if not s3_key.startswith(SWEEPS_PREFIX) or not is_uuid(sweep_id) or project is None:
        return None
    return RecordPath(sweep_id, project, name)


def parse_running_marker(s3_key: str) -> tuple[str, str] | None:
    """The sweep id and the project, or `*`, of a marker; None if it is none."""
    sweep_id, _, folder = s3_key.removeprefix(RUNNING_PREFIX).partition("/")
    project = _project_of(folder)
    if not is_uuid(sweep_id) or project is None:
        return None
    return sweep_id, project


def parse_part_name(sweep_id: str, s3_key: str) -> str:
    """The name of a part's result in the `part_results_folder`: a project, unless forged."""
    return s3_key.removeprefix(part_results_folder(sweep_id)).removesuffix(".json")


def plan_path(sweep_id: str, project: str) -> str:
    """The path of a plan; `*` for a sweep of all projects."""
    return sweep_prefix(sweep_id, project) + PLAN_NAME


def running_marker(sweep_id: str, project: str) -> str:
    """The path of the marker of a running sweep."""
    folder = sweep_prefix(sweep_id, project)
    return RUNNING_PREFIX + folder.removeprefix(SWEEPS_PREFIX).removesuffix("/")


def results_folder(sweep_id: str, project: str) -> str:
    """The folder of all page results of a sweep."""
    return sweep_prefix(sweep_id, project) + _RESULTS


def results_prefix(sweep_id: str, project: str, round_: int) -> str:
    """What the paths of all page results of one round begin with."""
    return f"{results_folder(sweep_id, project)}{round_:06}-"


def result_path(sweep_id: str, project: str, round_: int, page: int, attempt: int) -> str:
    """The path of the result of one page attempt."""
    return f"{results_prefix(sweep_id, project, round_)}{page:08}-{attempt:06}.json"


def failures_prefix(sweep_id: str, project: str, round_: int) -> str:
    """What the paths of all failure records of one round begin with."""
    return f"{sweep_prefix(sweep_id, project)}{_FAILURES}{round_:06}-"


def failures_path(sweep_id: str, project: str, round_: int, page: int) -> str:
    """The path of the failures of one proven page."""
    return f"{failures_prefix(sweep_id, project, round_)}{page:08}.json"


def tags_folder(sweep_id: str, project: str) -> str:
    """The folder of all tag notes of a sweep."""
    return sweep_prefix(sweep_id, project) + _TAGS


def tags_prefix(sweep_id: str, project: str, round_: int, page: int) -> str:
    """What the paths of all tag notes of one page in one round begin with."""
    return f"{tags_folder(sweep_id, project)}{round_:06}-{page:08}-"


def new_tags_path(sweep_id: str, project: str, round_: int, page: int, attempt: int) -> str:
    """A path for one more tag note of a page attempt; unique."""
    return f"{tags_prefix(sweep_id, project, round_, page)}{attempt:06}-{uuid4().hex}.json"


def part_results_folder(sweep_id: str) -> str:
    """The folder of the results of the parts of a sweep of all projects."""
    return sweep_prefix(sweep_id, ALL_PROJECTS) + _PARTS


def part_result_path(sweep_id: str, project: str) -> str:
    """The path of the result of one part of a sweep of all projects."""
    return f"{part_results_folder(sweep_id)}{project}.json"


def _project_of(folder: str) -> str | None:
    if folder == ALL_PROJECTS_FOLDER:
        return ALL_PROJECTS
    return folder if is_project(folder) else None
