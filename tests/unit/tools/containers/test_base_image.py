"""The base image: which one, and why it is not to be had."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.tools.containers.fake_engine import FakeEngine
from tools.containers.engine import CannotRunError
from tools.containers.images import BROKER, ROOT, base_references, make_base, pull

if TYPE_CHECKING:
    from pathlib import Path


def test_the_images_are_built_upon_one_base() -> None:
    assert base_references((ROOT / "Dockerfile").read_text()) == ["debian:13-slim"]


def test_stages_are_no_base() -> None:
    text = "FROM a:1 AS x\nRUN y\nFROM x AS z\nFROM b:2\nCOPY --from=x / /\n"
    assert base_references(text) == ["a:1", "b:2"]


def test_an_image_that_is_there_is_not_pulled() -> None:
    engine = FakeEngine({"image inspect": "[]"})
    assert pull(engine, "debian:13-slim") is None
    assert [command[0] for command in engine.commands] == ["image"]


def test_an_image_is_pulled_where_a_registry_answers() -> None:
    assert pull(FakeEngine({"pull": "done"}), "debian:13-slim") is None
    away = FakeEngine(reason="dial tcp: no route to host")
    assert pull(away, "debian:13-slim") == "dial tcp: no route to host"


@pytest.mark.parametrize("reference", ["alpine:3", "debian:99-slim", "debian"])
def test_only_debian_is_made_here(tmp_path: Path, reference: str) -> None:
    with pytest.raises(CannotRunError, match=f"^{reference} cannot be made here$"):
        make_base(FakeEngine(), reference, tmp_path)


def test_the_broker_that_stands_in_is_not_run_by_root() -> None:
    text = BROKER.format(base="debian:13-slim")
    assert base_references(text) == ["debian:13-slim"]
    assert "\nUSER rabbitmq\n" in text
