"""Everything that is installed was locked before, by its hash; the SBOM lists what is shipped."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from tools.supply.lock import (
    EXTRAS,
    FILE,
    OURS,
    PUBLISHERS,
    PURPOSES,
    ROOT,
    SHIPPED,
    direct,
    generate,
    license_of,
    packages,
    shipped,
)
from tools.supply.sbom import faults

if TYPE_CHECKING:
    from pathlib import Path


_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_PIN = re.compile(
    r"^([a-z0-9-]+)==(\S+)(?: ;[^\\\n]*)? \\\n((?:    --hash=\S+(?: \\)?\n)+)", re.MULTILINE
)
# What may be shipped with an Apache-2.0 program without further permission.
_ALLOWED = {
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "PSF-2.0",
}
_FEW = 40
_UV = r"(?:\buv|\$\(UV\))"


def export(target: Path, how: str, *options: str) -> Path:
    """Write the shipped set to this file; skips where there is no uv."""
    own = ROOT / ".tools" / "bin" / "uv"
    uv = shutil.which("uv") or (str(own) if own.is_file() else None)
    if uv is None:
        pytest.skip("no uv here: `make setup` brings one")
    subprocess.run(
        [
            *(uv, "export", "--locked", "--offline", "--quiet", "--no-default-groups"),
            *("--package", SHIPPED, *(f"--extra={extra}" for extra in sorted(EXTRAS))),
            *("--format", how, "--output-file", str(target), *options),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return target


def test_every_file_of_the_lock_has_its_hash() -> None:
    """Tools and tests too; the project's own distributions are the only packages without files."""
    for package in packages():
        if package.name in OURS:
            assert set(package.table["source"]) == {"editable"}
            continue
        assert set(package.table["source"]) == {"registry"}, package.name
        assert package.files, package.name
        for file in package.files:
            assert _SHA256.fullmatch(file["hash"]), package.name
            assert file["url"].startswith("https://"), package.name


def test_the_export_pins_and_hashes_the_shipped_set(tmp_path: Path) -> None:
    text = export(tmp_path / "r.txt", "requirements.txt", "--no-emit-workspace").read_text()
    text = re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE)
    pins = _PIN.findall(text)
    assert {(name, version) for name, version, _ in pins} == {
        (name, package.version) for name, package in shipped().items()
    }
    assert len(re.findall(r"^\S", text, re.MULTILINE)) == len(pins)
    for name, _, hashes in pins:
        known = {file["hash"] for file in shipped()[name].files}
        assert set(_SHA256.findall(hashes)) == known


def test_nothing_is_installed_that_is_not_locked() -> None:
    """In the Makefile, in the image and in CI: uv by its hashes, all else by the lock."""
    for name in ("Makefile", "Dockerfile", ".ci/run"):
        text = (ROOT / name).read_text()
        for line in text.splitlines():
            if re.search(rf"{_UV} (sync|export)\b", line):
                assert "--locked" in line, f"{name}: {line}"
            if re.search(r"\bpip install\b", line):
                assert "--require-hashes" in line, f"{name}: {line}"
            assert not re.search(rf"{_UV} (run|tool|add|pip)\b|\buvx\b|curl|wget", line), (
                f"{name}: {line}"
            )
    pinned = (ROOT / ".ci" / "uv.txt").read_text()
    assert re.findall(r"^([a-z]\S*)==", pinned, re.MULTILINE) == ["uv"]
    assert len(_SHA256.findall(pinned)) > 1


def test_what_builds_the_wheel_is_pinned() -> None:
    """By its version: uv's lock holds no hashes for what a build needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = project["tool"]["uv"]["build-constraint-dependencies"]
    assert all(re.fullmatch(r"[a-z-]+==[0-9.]+", pin) for pin in pins)
    named = {pin.split("==")[0] for pin in pins}
    for member in project["tool"]["uv"]["workspace"]["members"]:
        built = tomllib.loads((ROOT / member / "pyproject.toml").read_text())
        assert set(built["build-system"]["requires"]) <= named


def test_dependencies_are_few_documented_and_free() -> None:
    assert FILE.read_text() == generate(), "run `python -m tools.supply.lock`"
    assert list(direct()) == sorted(PURPOSES)
    assert len(direct()) <= _FEW
    for name in shipped():
        parts = set(re.split(r" (?:AND|OR) ", re.sub(r"[()]", "", license_of(name))))
        assert parts <= _ALLOWED, name


# The SBOM is CycloneDX, and lists exactly what is shipped.


@pytest.fixture
def sbom(tmp_path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        export(tmp_path / "sbom.json", "cyclonedx1.5").read_text()
    )
    return document


@pytest.mark.slow
def test_the_sbom_is_the_shipped_set(sbom: dict[str, Any]) -> None:
    assert faults(json.dumps(sbom)) == []
    assert sbom["metadata"]["component"]["name"] == "keyturn-workers"
    assert all(
        one["purl"].startswith("pkg:pypi/")
        for one in sbom["components"]
        if one["name"] != PUBLISHERS
    )


@pytest.mark.slow
def test_missing_and_extra_packages_are_reported(sbom: dict[str, Any]) -> None:
    gone = sbom["components"].pop(0)
    sbom["components"][0]["version"] = "0"
    first, second, third = faults(json.dumps(sbom))
    assert first == f"missing: {gone['name']} {gone['version']}"
    assert second.startswith("missing: ")
    assert third == f"not shipped: {sbom['components'][0]['name']} 0"


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"bomFormat": "other"}, {"components": [{"name": "x"}]}])
def test_another_format_is_reported(sbom: dict[str, Any], change: dict[str, Any]) -> None:
    (fault,) = faults(json.dumps(sbom | change))
    assert fault.startswith("not CycloneDX 1.5")
