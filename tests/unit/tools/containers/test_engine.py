"""The `docker` command: its failures, and whether an engine answers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tools.containers.engine import DockerError, Engine, find_engine, last_line

if TYPE_CHECKING:
    from pathlib import Path


def _docker(folder: Path, script: str) -> None:
    program = folder / "docker"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that is found before all others."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_an_engine_that_answers_is_used(path: Path) -> None:
    _docker(path, "echo 26.1.5")
    engine = find_engine()
    assert engine is not None
    assert not engine.is_private


@pytest.mark.parametrize("script", ["echo no daemon >&2; exit 1", "exit 0"])
def test_a_command_without_an_engine_is_none(path: Path, script: str) -> None:
    _docker(path, script)
    assert find_engine() is None


def test_no_command_is_no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_engine() is None


def test_a_failure_says_how_the_command_ended(path: Path) -> None:
    _docker(path, 'echo "$@"; echo refused >&2; exit 3')
    engine = Engine(dict(os.environ), is_private=False)
    with pytest.raises(DockerError, match=r"(?s)docker pull ended with 3:.*refused"):
        engine.run("pull", "x")
    assert engine.attempt("pull", "x").stdout == "pull x\n"


def test_a_command_that_hangs_is_ended(path: Path) -> None:
    _docker(path, "exec sleep 60")
    done = Engine(dict(os.environ), is_private=False).attempt("pull", "x", timeout_s=0.2)
    assert (done.returncode, done.stderr) == (124, "no end in 0.2 s")


def test_a_reason_is_the_last_line_that_says_something() -> None:
    assert last_line("one\ntwo \n\n") == "two"
    assert last_line("\n") == "no output"
