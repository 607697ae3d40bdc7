"""What the images are built from, and which are removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.tools.containers.fake_engine import FakeEngine
from tools.containers.images import IMAGE, ROOT, STORAGE, Images, broker_reference, copy_sources

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_the_sources_are_copied_without_secrets_and_caches(tmp_path: Path) -> None:
    copy_sources(tmp_path)
    copied = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    for path in copied:
        assert (ROOT / path).read_bytes() == (tmp_path / path).read_bytes()
        assert path.suffix not in (".env", ".key", ".pyc")
    names = {path.parts[0] for path in copied}
    assert {"Dockerfile", "compose.yaml", "contracts", "workers", "tools", "uv.lock"} <= names
    assert not {".git", ".venv", "tests", "console"} & names


def test_the_broker_is_the_one_of_compose() -> None:
    assert broker_reference((ROOT / "compose.yaml").read_text()) == "rabbitmq:4"


@pytest.mark.parametrize(
    ("before", "ours"),
    [(("debian", "rabbitmq"), {IMAGE, STORAGE}), (("debian", "rabbitmq", "keyturn"), set())],
    ids=["only what they are made from", "all of them"],
)
def test_what_is_there_is_built_upon_and_stays(
    tmp_path: Path, before: tuple[str, ...], ours: set[str]
) -> None:
    for name in ("Dockerfile", "compose.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    held = {f"image inspect {name}": "[]" for name in before}
    engine = FakeEngine({**held, "build": "", "image rm": ""})
    images = Images(engine, tmp_path, tmp_path)
    images.provide()
    assert images.made == []
    assert set(images.built) == ours
    builds = [command for command in engine.commands if command[0] == "build"]
    assert {build[build.index("--target") + 1] for build in builds} == {"keyturn", "storage"}
    assert not any("--network" in build for build in builds)
    images.remove()
    removed = {command[-1] for command in engine.commands if command[:2] == ("image", "rm")}
    assert removed == ours
