"""One version in every place that has one, and the changelog's entry for it. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

REPOSITORY: Final = "https://github.com/keyturn/keyturn"
IMAGE_FILE: Final = "deploy/kubernetes/components/image/kustomization.yaml"
"""Names the image of all manifests."""
_SOURCE: Final = "contracts/pyproject.toml"
PLACES: Final = {
    _SOURCE: r'^version = "(.+)"',
    "workers/pyproject.toml": r'(?:^version = |"keyturn\[.+\]==)"?([^"]+)"',
    "uv.lock": r'^name = "keyturn(?:-workers)?"\nversion = "(.+)"',
    "clients/typescript/package.json": r'^  "version": "(.+)"',
    "clients/typescript/package-lock.json": r'"name": "keyturn",\n +"version": "(.+)"',
    "workers/keyturn_workers/gateway/openapi.json": r'^    "version": "(.+)"',
    IMAGE_FILE: r'newTag: "(.+)"',
}
_ENTRY: Final = r"^## {} \((unreleased|\d{{4}}-\d\d-\d\d)\)\n(.*?)(?=^## |\Z)"
_RENAMED_IMAGE: Final = re.compile(r"^images:\n(?:[ -].*\n)*? *- *name: keyturn\n", re.MULTILINE)
_RELATIVE_LINK: Final = re.compile(r"\]\((?!https?:|#)")


def version_of(root: Path) -> str:
    """The version that a checkout builds."""
    return _found(root, _SOURCE)[0]


def npm_version(version: str) -> str:
    """The same version as npm writes it: 1.0.0rc1 is 1.0.0-rc.1 there."""
    return re.sub(r"rc(\d+)$", r"-rc.\1", version)


def faults(root: Path, *, tag: str = "") -> list[str]:
    """What does not agree with the version of the package `keyturn`; nothing where all is well.

    Args:
        root: A checkout.
        tag: The tag that is being released. With it, the changelog's entry must have a date.
    """
    version = version_of(root)
    found = []
    for file in PLACES:
        expected = npm_version(version) if "typescript" in file else version
        if set(there := _found(root, file)) != {expected}:
            found.append(f"{file} must have the version {expected}, and has {there}")
    if tag not in ("", f"v{version}"):
        found.append(f"the tag is {tag}, not v{version}")
    try:
        date, _ = _entry(root)
    except ValueError as exc:
        found.append(str(exc))
    else:
        if tag and date == "unreleased":
            found.append(f"CHANGELOG.md: {version} is tagged, but has no date")
    manifests = sorted((root / "deploy").rglob("*.yaml"))
    return found + [
        f"{path.relative_to(root)} names the image: only {IMAGE_FILE} may"
        for path in manifests
        if path != root / IMAGE_FILE and _RENAMED_IMAGE.search(path.read_text())
    ]


def notes(root: Path) -> str:
    """The changelog's entry for this version, with links that work outside the repository.

    Raises:
        ValueError: there is none, or it is empty.
    """
    _, text = _entry(root)
    return _RELATIVE_LINK.sub(f"]({REPOSITORY}/blob/v{version_of(root)}/", text)


def _entry(root: Path) -> tuple[str, str]:
    """Date and text of the first entry, which must be this version's."""
    version = version_of(root)
    entries = (root / "CHANGELOG.md").read_text().partition("\n## ")
    pattern = _ENTRY.format(re.escape(version))
    found = re.match(pattern, "## " + entries[2], re.MULTILINE | re.DOTALL)
    if found is None or not found[2].strip():
        raise ValueError(f"CHANGELOG.md must begin with `## {version} (date)` and what it brings")
    return found[1], f"{found[2].strip()}\n"


def _found(root: Path, file: str) -> list[str]:
    return re.findall(PLACES[file], (root / file).read_text(), re.MULTILINE)
