"""An import: every object is requested, and the result says what became of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from keyturn.errors import (
    NotDeliveredError,
    OutcomeUnknownError,
    SourceUnavailableError,
    StorageUnavailableError,
)
from keyturn.identifiers import keyring_s3_key
from keyturn_workers.core.errors import RefusedError
from keyturn_workers.core.storage_values import Headers, ObjectSummary
from keyturn_workers.pipeline.ingest import importing
from keyturn_workers.pipeline.ingest.importing import Import, ImportResult, NotImported
from keyturn_workers.pipeline.sources.bucket import SourceBucket
from tests.unit.keyturn_workers.pipeline.ingest.scene import DEPLOYMENT, Outcomes, Scene

if TYPE_CHECKING:
    from keyturn.publisher import Publisher


async def run(
    scene: Scene, prefix: str = "", *, wait: bool = True, dry_run: bool = False
) -> ImportResult:
    bucket = SourceBucket("drop", scene.source, scene.bucket, scene.own)
    publisher = None if dry_run else cast("Publisher", scene.outcomes)
    return await Import(bucket, scene.own, DEPLOYMENT, publisher, wait=wait).run(prefix)


def put_target(scene: Scene, key: str, upload_id: str) -> None:
    scene.own.plant(f"acme/{key}", b"sealed", Headers({"enc-upload": upload_id}))


async def test_every_object_has_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    scene.put("a", "b", "../x", "big", "late", "sub/")
    scene.bucket.plant("in/folder/", b"", Headers({}))
    scene.bucket.plant("out/x", b"x", Headers({}))
    scene.outcomes.codes |= {"big": "body_too_large", "late": None}
    monkeypatch.setattr(importing, "_IDLE_S", 0.01)
    result = await run(scene)
    assert result.statuses == {"stored": 2}
    assert result.refused == {"malformed_request": 2, "body_too_large": 1, "waiting": 1}
    assert {each.s3_key for each in result.not_imported} == {
        *("in/../x", "in/big", "in/late", "in/sub/")
    }
    assert (result.objects, result.size_bytes) == (6, 6)


async def test_a_prefix_selects() -> None:
    scene = Scene()
    scene.put("a/1", "a/2", "b/1")
    result = await run(scene, "a/")
    assert result.statuses == {"stored": 2}
    assert scene.outcomes.keys == ["in/a/1", "in/a/2"]


async def test_run_again_it_says_what_is_there_already() -> None:
    """By the object's metadata, and only if the workers confirm it."""
    scene = Scene()
    scene.put("a", "b", "c")
    await run(scene)
    for each in scene.outcomes.requested[:2]:
        put_target(scene, each.key.removeprefix("in/"), each.upload_id(DEPLOYMENT))
    put_target(scene, "c", "another upload")
    scene.outcomes.codes |= {"b": "corrupt_object", "c": "already_exists"}
    result = await run(scene)
    assert result.statuses == {"already there": 1}
    assert result.refused == {"corrupt_object": 1, "already_exists": 1}


async def test_without_waiting_it_only_requests() -> None:
    scene = Scene()
    scene.put("a", "b")
    scene.outcomes.hold.clear()
    assert (await run(scene, wait=False)).statuses == {"queued": 2}
    assert scene.bucket.calls["head"] == 2  # nobody would notice that one has changed


async def test_a_dry_run_requests_nothing() -> None:
    scene = Scene(project="{first}", key="{rest}")
    scene.put("acme/a", "acme/b", "acme/../c", "globex/a")
    scene.own.plant(keyring_s3_key("acme"), b"{}", Headers({}))
    await run(scene)
    first = scene.outcomes.requested[0]
    scene.own.plant("acme/a", b"", Headers({"enc-upload": first.upload_id(DEPLOYMENT)}))
    scene.outcomes = Outcomes()
    result = await run(scene, dry_run=True)
    assert result.statuses == {"not requested": 1, "already there": 1}
    assert result.refused == {"malformed_request": 1, "unknown_project": 1}
    assert not scene.outcomes.requested


@pytest.mark.parametrize(("code", "status"), [("source_missing", "gone"), ("source_changed", "")])
async def test_an_object_that_changes_meanwhile_is_asked_for_again(code: str, status: str) -> None:
    scene = Scene()
    scene.put("a")
    scene.outcomes.codes["a"] = code
    result = await run(scene)
    assert result.statuses == ({status: 1} if status else {})
    assert len(scene.outcomes.requested) == (1 if status else 3)
    assert result.refused == ({} if status else {code: 1})
    assert scene.bucket.calls["head"] == (0 if status else 2)


@pytest.mark.parametrize(
    "failure",
    [None, RefusedError("403"), StorageUnavailableError("501")],
    ids=["answered", "refused", "not implemented"],
)
async def test_only_an_object_that_may_have_a_version_is_asked_for(
    failure: Exception | None,
) -> None:
    """A listing shows no version. Where versions were never kept, it names the object."""
    scene = Scene()
    scene.put("a", "b")
    if failure is not None:
        scene.bucket.fail_next("versioning", failure)
    assert (await run(scene)).statuses == {"stored": 2}
    assert scene.bucket.calls["head"] == (0 if failure is None else 2)
    ids = {each.upload_id(DEPLOYMENT) for each in scene.outcomes.requested}
    scene.outcomes.requested.clear()
    scene.bucket.fail_next("versioning", RefusedError("403"))
    await run(scene)
    assert {each.upload_id(DEPLOYMENT) for each in scene.outcomes.requested} == ids


async def test_what_the_source_refuses_is_not_in_and_an_outage_ends_the_import() -> None:
    scene = Scene()
    scene.bucket.set_versioning("Enabled")
    scene.put("a", "b")
    scene.bucket.fail_next("head", RefusedError("403"))
    result = await run(scene)
    assert (result.statuses, result.refused) == ({"stored": 1}, {"source_unavailable": 1})
    scene.bucket.fail_next("list_entries", StorageUnavailableError("down"))
    with pytest.raises(ExceptionGroup) as caught:
        await run(scene)
    assert caught.group_contains(SourceUnavailableError)
    for failure, error in (("down", NotDeliveredError), ("unsure", OutcomeUnknownError)):
        scene.outcomes.failure = error(failure)
        with pytest.raises(ExceptionGroup) as caught:
            await run(scene)
        assert caught.group_contains(error)


def test_the_result_names_a_bounded_number_of_objects() -> None:
    result = ImportResult()
    row = ObjectSummary("k", 1, "e", Scene().now)
    for number in range(importing.MAX_FAILURES + 5):
        result.add(row, NotImported(str(number), "body_too_large", ""))
    assert len(result.not_imported) == importing.MAX_FAILURES
    assert result.refused.total() == importing.MAX_FAILURES + 5
