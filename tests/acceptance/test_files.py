"""Real files through the real client, while one of two workers after the other is killed."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings, S3Settings
from tools.harness.canaries import MARKER
from tools.harness.scene import check_queues_empty
from tools.harness.wire import open_wire

if TYPE_CHECKING:
    from pathlib import Path

    from tools.harness.process import WorkerProcess
    from tools.harness.scene import Scene

pytestmark = pytest.mark.servers

_KIB = 1024
_EDGES = (0, 1, 16383, 16384, 16385, 256 * _KIB, 256 * _KIB + 1)
_LARGE_BYTES = 20 * _KIB**2
_BATCHES = 4
_BATCH_FILES = 25


def _write_files(folder: Path) -> list[list[Path]]:
    """Batches of files: each has all edges, a large one every other, and small ones."""
    dice = random.Random(7)  # noqa: S311  # only spreads sizes
    batches = []
    for batch in range(_BATCHES):
        sizes = [*_EDGES, *([_LARGE_BYTES] if batch % 2 else [])]
        sizes += [dice.randint(1, 60_000) for _ in range(_BATCH_FILES - len(sizes))]
        dice.shuffle(sizes)
        paths = []
        for number, size in enumerate(sizes):
            path = folder / f"{batch}" / f"file {number} ä.bin"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes((MARKER + os.urandom(max(size - len(MARKER), 0)))[:size])
            paths.append(path)
        batches.append(paths)
    return batches


def _settings(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> tuple[PublisherSettings, S3Settings]:
    for name, value in scene.deployment.publisher_env().items():
        monkeypatch.setenv(name, value)
    return PublisherSettings.read(), S3Settings.read()


class _Pair:
    """Two workers, of which either is killed and replaced in turn."""

    def __init__(self, scene: Scene, stack: AsyncExitStack) -> None:
        self._scene = scene
        self._stack = stack
        self._running: list[WorkerProcess] = []
        self.kills = 0

    async def start(self) -> None:
        self._running = [await self._new(), await self._new()]

    async def _new(self) -> WorkerProcess:
        return await self._stack.enter_async_context(self._scene.worker("upload"))

    async def kill_one(self) -> None:
        at = self.kills % 2
        await self._running[at].kill()
        self.kills += 1
        self._running[at] = await self._new()

    async def end(self) -> None:
        for running in self._running:
            assert await running.terminate() == 0


async def test_files_survive_killed_workers(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every object opens with both keys to its file; every upload is reported; staging is empty."""
    batches = _write_files(tmp_path)
    publisher_settings, s3_settings = _settings(scene, monkeypatch)
    async with AsyncExitStack() as stack:
        workers = _Pair(scene, stack)
        await workers.start()
        wire = await stack.enter_async_context(open_wire(scene.deployment))
        publisher = await stack.enter_async_context(
            Publisher.open(publisher_settings, s3=s3_settings)
        )
        upload_ids: dict[str, str] = {}
        for batch in batches:
            keys = {f"files/{path.relative_to(tmp_path)}": path for path in batch}
            published = await asyncio.gather(
                *(publisher.upload(scene.project, key, path) for key, path in keys.items())
            )
            upload_ids |= dict(zip(keys, published, strict=True))
            scene.plaintexts |= {key: path.read_bytes() for key, path in keys.items()}
            ids = set(published)
            await wire.event(lambda event, ids=ids: event["upload_id"] in ids)  # type: ignore[misc]
            await workers.kill_one()
        for upload_id in upload_ids.values():
            event = await publisher.wait(upload_id, timeout_s=60)
            assert event.type == "upload.stored"
            await wire.outcome(upload_id)
        assert workers.kills == _BATCHES
        await workers.end()
        assert {event["type"] for event in wire.events} == {"upload.stored"}
        await check_queues_empty(wire)
    await asyncio.to_thread(_check, scene, upload_ids)


def _check(scene: Scene, upload_ids: dict[str, str]) -> None:
    assert len(upload_ids) == _BATCHES * _BATCH_FILES
    for key, upload_id in upload_ids.items():
        scene.check_object(key, upload_id)
    scene.check_nothing_left()
    scene.check_logs()
