"""Files, tests, headings, packages and policies that documents and manifests name exist."""

from __future__ import annotations

import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from keyturn.topology import DEAD_POLICIES, DEAD_QUEUES, queues

_ROOT = Path(__file__).parents[3]
_DOCUMENTS = sorted(
    str(path.relative_to(_ROOT)) for path in (*_ROOT.glob("*.md"), *(_ROOT / "docs").rglob("*.md"))
)
_TEST = re.compile(r"`(tests/[\w/*]+\.py)(?:::(\w+))?[^`]*`")
# Below one of the repository's folders. Pages about the past may name what is gone.
_PAST = re.compile(r"CHANGELOG\.md|docs/adr/.*")
_FILE = re.compile(r"`((?:contracts|workers|tools|examples|docs|tests|\.ci)/[\w./*-]*)(?:::\w+)?`")
_LINK = re.compile(r"\]\(((?!https?:)[^)#\s]*)#([^)\s]+)\)")


@cache
def _anchors(path: Path) -> frozenset[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return frozenset(
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
    )


@pytest.mark.parametrize("document", _DOCUMENTS)
def test_the_tests_that_a_document_names_exist(document: str) -> None:
    missing = []
    for pattern, test in _TEST.findall((_ROOT / document).read_text()):
        files = list(_ROOT.glob(pattern))
        if not files or (test and f"def {test}(" not in files[0].read_text()):
            missing.append(f"{pattern}::{test}")
    assert missing == []


@pytest.mark.parametrize("document", [name for name in _DOCUMENTS if not _PAST.match(name)])
def test_the_files_that_a_document_names_exist(document: str) -> None:
    named = _FILE.findall((_ROOT / document).read_text())
    assert [path for path in named if not any(_ROOT.glob(path))] == []


@pytest.mark.parametrize("document", _DOCUMENTS)
def test_the_headings_that_a_document_links_to_exist(document: str) -> None:
    path = _ROOT / document
    missing = []
    for target, anchor in _LINK.findall(path.read_text()):
        linked = (path.parent / target).resolve() if target else path
        if anchor not in _anchors(linked):
            missing.append(f"{target}#{anchor}")
    assert missing == []


# The map in docs/architecture.md: every package has a row, and every row is there.


_FOLDERS: Final = (_ROOT / "docs" / "architecture.md").read_text().split("\n## Folders")[1]
_PACKAGES: Final = {
    "contracts": _ROOT / "contracts" / "keyturn",
    "workers": _ROOT / "workers" / "keyturn_workers",
}


def _mapped(section: str) -> set[str]:
    """The paths in the first column of a section's table."""
    _, _, rest = _FOLDERS.partition(f"\n**`{section}/`**")
    rows = re.findall(r"^\| (`[^|]+) \|", rest.partition("\n**")[0], re.MULTILINE)
    return {path for row in rows for path in re.findall(r"`([^`]+)`", row)}


def _is_on_the_map(path: Path) -> bool:
    is_package = (path / "__init__.py").is_file()
    return is_package or (path.suffix == ".py" and not path.name.startswith("_"))


@pytest.mark.parametrize("section", _PACKAGES)
def test_every_part_of_a_package_has_a_row(section: str) -> None:
    package = _PACKAGES[section]
    prefix = "keyturn/" if section == "contracts" else ""
    parts = {
        f"{prefix}{path.name}{'/' if path.is_dir() else ''}"
        for path in package.iterdir()
        if _is_on_the_map(path)
    }
    mapped = {path for path in _mapped(section) if path.startswith(prefix)}
    assert mapped - {"schemas/", "examples/", "asyncapi.json"} == parts


# SECURITY.md: a row for every attacker of SPEC 13, and tests that are there.


_SECURITY = (_ROOT / "SECURITY.md").read_text()
_NAMED = re.compile(r"`(tests/[^`]*)`")
_ATTACKERS = {
    "the bucket, to read",
    "the bucket, to write",
    "the broker, to read",
    "the broker, to write",
    "a project's API key",
    "a publisher's key",
    "a publisher's key that may erase",
    "the secret of a publisher's session",
    "a console's machine",
    "the network, where TLS is on",
    "a link to an object",
    "an upload link",
    "the exchange of notifications, to write",
    "a source's bucket, to write",
    "an old API key",
    "DEKs, or an old key and the wraps of its time",
    "the logs, metrics, traces",
    "the master key",
    "the master key and the API key of a project with a customer key, without that key",
    "an operator's machine",
    "no key: only the address of a gateway or of a console",
    "a page in an operator's browser, or an account without a role",
}


def _rows() -> dict[str, list[str]]:
    """By attacker, what its row is shown by."""
    cells = [
        line.strip("|").split(" | ") for line in _SECURITY.splitlines() if line.startswith("| ")
    ]
    return {cell[0].strip(): _NAMED.findall(cell[2]) for cell in cells[2:]}


def test_every_attacker_has_a_row_of_one_line_that_names_tests() -> None:
    assert set(_rows()) == _ATTACKERS
    assert all(_rows().values())


@pytest.mark.parametrize("named", sorted(set(_NAMED.findall(_SECURITY))))
def test_every_named_file_or_folder_holds_tests_that_run(named: str) -> None:
    path = _ROOT / named
    files = [path] if named.endswith(".py") else [*path.rglob("test_*.py")]
    assert files
    for file in files:
        text = file.read_text()
        assert re.search(r"^(async )?def test_", text, re.MULTILINE), file
        assert "@pytest.mark.skip(" not in text, file


# Dead letters: documents and manifests set the policies of the specification (SPEC 6.9).


_EXPECTED = {(p.name, p.pattern): dict(p.definition) for p in DEAD_POLICIES}


def _commands(path: str) -> dict[tuple[str, str], Any]:
    text = (_ROOT / path).read_text(encoding="utf-8").replace("\\\n#", "")
    found: dict[tuple[str, str], Any] = {}
    for line in re.findall(r"rabbitmqctl (set_policy .*)", text):
        *options, name, pattern, definition = shlex.split(line)
        assert options[-2:] == ["--apply-to", "quorum_queues"]
        found[name, pattern] = json.loads(definition)
    return found


def test_the_commands_set_the_policies() -> None:
    assert _commands("docs/howto/deploy.md") == _EXPECTED


def test_the_example_for_kubernetes_sets_the_policies() -> None:
    path = _ROOT / "deploy/kubernetes/examples/rabbitmq/policies.yaml"
    specs = [each["spec"] for each in yaml.safe_load_all(path.read_text()) if each]
    assert {(s["name"], s["pattern"]): s["definition"] for s in specs} == _EXPECTED
    assert {(s["vhost"], s["applyTo"]) for s in specs} == {("keyturn", "queues")}


def test_every_dead_letter_queue_has_one_policy_that_its_arguments_leave_in_force() -> None:
    for queue in queues():
        policies = [p for p in DEAD_POLICIES if re.search(p.pattern, queue.name)]
        assert len(policies) == (queue.name in DEAD_QUEUES)
        for policy in policies:
            assert not {f"x-{name}" for name in policy.definition} & set(queue.arguments)
