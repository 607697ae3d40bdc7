"""One version everywhere, the changelog's entry for it, and who may publish (`tools/release`)."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from tools.release import versions
from tools.supply.lock import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_VERSION: Final = versions.version_of(ROOT)
_NPM: Final = versions.npm_version(_VERSION)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """All that has a version, in a folder of its own."""
    for file in (*versions.PLACES, "CHANGELOG.md"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def _changed(root: Path, file: str, old: str, new: str) -> None:
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))


def test_this_checkout_has_one_version() -> None:
    assert versions.faults(ROOT) == []


@pytest.mark.parametrize(
    ("file", "old"),
    [
        ("workers/pyproject.toml", f'version = "{_VERSION}"'),
        ("workers/pyproject.toml", f"keyturn[staging,gateway]=={_VERSION}"),
        ("uv.lock", f'name = "keyturn-workers"\nversion = "{_VERSION}"'),
        ("clients/typescript/package.json", f'"version": "{_NPM}"'),
        ("clients/typescript/package-lock.json", f'"version": "{_NPM}"'),
        ("workers/keyturn_workers/gateway/openapi.json", f'"version": "{_VERSION}"'),
        (versions.IMAGE_FILE, f'newTag: "{_VERSION}"'),
    ],
)
def test_another_version_is_found_anywhere(copy: Path, file: str, old: str) -> None:
    _changed(copy, file, old, old.replace("1.0.0", "1.0.1"))
    (fault,) = versions.faults(copy)
    assert fault.startswith(file)


def test_only_one_file_names_the_image(copy: Path) -> None:
    other = copy / "deploy/kubernetes/overlays/mine/kustomization.yaml"
    other.parent.mkdir(parents=True)
    other.write_text("images:\n  - name: rabbitmq\n    newTag: '4'\n")
    assert versions.faults(copy) == []
    other.write_text("images:\n  - name: rabbitmq\n    newTag: '4'\n  - name: keyturn\n")
    (fault,) = versions.faults(copy)
    assert "overlays/mine/kustomization.yaml" in fault


def test_a_tag_must_be_the_version_and_its_entry_must_have_a_date(copy: Path) -> None:
    text = (copy / "CHANGELOG.md").read_text()
    start = f"\n## {_VERSION} ("
    before, found, after = text.partition(start)
    assert found
    entry = after.partition(")")[2]
    dated = f"{before}{start}2026-12-01){entry}"
    for changelog, tag, says in (
        (f"{before}{start}unreleased){entry}", f"v{_VERSION}", "has no date"),
        (dated, "v9.9.9", "the tag is v9.9.9"),
        (f"{before}\n## 1.0.1 (2026-12-02)\n\nNewer.\n{found}2026-12-01){entry}", "", "must begin"),
        (f"{before}{start}2026-12-01)\n", "", "must begin"),
    ):
        (copy / "CHANGELOG.md").write_text(changelog)
        (fault,) = versions.faults(copy, tag=tag)
        assert says in fault
    (copy / "CHANGELOG.md").write_text(dated)
    assert versions.faults(copy, tag=f"v{_VERSION}") == []


def test_links_of_the_release_notes_lead_to_the_tag(copy: Path) -> None:
    (copy / "CHANGELOG.md").write_text(
        f"# Changelog\n\n## {_VERSION} (2026-12-01)\n\n[a](docs/a.md#b), [c](https://example.com)\n"
        "\n## 0.1.0 (2026-01-01)\n\nOlder.\n"
    )
    assert versions.notes(copy) == (
        f"[a]({versions.REPOSITORY}/blob/v{_VERSION}/docs/a.md#b), [c](https://example.com)\n"
    )


def test_a_job_that_may_publish_waits_for_all_tests_and_builds_and_runs_for_tags_only() -> None:
    jobs: Mapping[str, Any] = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())[
        "jobs"
    ]

    def before(name: str) -> set[str]:
        needs = jobs[name].get("needs", [])
        return {*needs, *(one for needed in needs for one in before(needed))}

    publishing = {name for name, job in jobs.items() if "write" in job["permissions"].values()}
    assert publishing == {"image", "pypi", "npm", "announce"}
    for name in publishing:
        chain = {name, *before(name)}
        assert {"test", "build"} < chain
        # A job is skipped where one that it needs was skipped.
        assert any(jobs[one].get("if") == "github.ref_type == 'tag'" for one in chain)
