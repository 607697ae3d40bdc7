"""The settings of LocalStack and MiniStack, and their locked environments. Starts neither."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest

from tools.servers import emulators
from tools.servers.emulators import (
    PROJECTS,
    Emulator,
    installed_version,
    localstack,
    locked_python,
    ministack,
)
from tools.servers.packages import MissingPackagesError
from tools.servers.process import ServerError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("make", [localstack, ministack])
def test_an_emulator_stays_on_loopback_and_in_its_folder(
    make: Callable[[], Emulator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYTURN_TEST_SCRATCH", str(tmp_path))
    emulator = make()
    (folder,) = tmp_path.iterdir()
    settings = emulator.environment
    paths = {value.removeprefix("unix://") for value in settings.values() if "/" in value}
    paths.remove(settings["PATH"])
    assert all(path == str(folder) or path.startswith(f"{folder}/") for path in paths)
    assert settings["DOCKER_HOST"].startswith("unix:///")
    port = emulator.server.endpoint_url.rpartition(":")[2]
    where = settings.get("GATEWAY_LISTEN") or f"{settings['BIND_HOST']}:{settings['GATEWAY_PORT']}"
    assert where == f"127.0.0.1:{port}"
    emulator.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "package"), [("localstack", "localstack-core"), ("ministack", "ministack")]
)
def test_each_environment_is_locked_at_the_version_that_it_names(name: str, package: str) -> None:
    project = tomllib.loads((PROJECTS / name / "pyproject.toml").read_text())["project"]
    lock = tomllib.loads((PROJECTS / name / "uv.lock").read_text())
    (version,) = [each["version"] for each in lock["package"] if each["name"] == package]
    named = {each.partition("[")[0].partition("==")[0]: each for each in project["dependencies"]}
    assert named[package].endswith(f"=={version}")


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for uv; environments are created below the folder."""
    program = tmp_path / "bin" / "uv"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(emulators, "CACHE", tmp_path / "cache")
    return program


def test_an_environment_is_made_as_its_lock_says(uv: Path, tmp_path: Path) -> None:
    uv.write_text('#!/bin/sh\nmkdir -p "$UV_PROJECT_ENVIRONMENT"; echo "$@" >"$0.call"\n')
    assert locked_python("some") == tmp_path / "cache" / "some" / "bin" / "python"
    assert (tmp_path / "cache" / "some").is_dir()
    called = uv.with_name("uv.call").read_text().split()
    assert called == ["sync", "--locked", "--quiet", "--project", str(PROJECTS / "some")]


def test_an_environment_that_cannot_be_made_is_reported(uv: Path) -> None:
    uv.write_text("#!/bin/sh\necho 'No interpreter found for Python 3.13' >&2; exit 2\n")
    with pytest.raises(MissingPackagesError, match=r"of some failed:\nNo interpreter found"):
        locked_python("some")


@pytest.mark.usefixtures("uv")
def test_the_version_is_that_of_the_environment(tmp_path: Path) -> None:
    python = tmp_path / "cache" / "some" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$3 7.5"\n')
    python.chmod(0o755)
    assert installed_version("some", "package") == "package 7.5"
    python.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ServerError, match="Python of some failed"):
        installed_version("some", "package")
