"""An import: every object is requested, and the result says what became of each."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import pytest

from keyturn.crypto import Secret, new_dek
from keyturn.errors import (
    NotDeliveredError,
    OutcomeUnknownError,
    SourceUnavailableError,
    StorageUnavailableError,
)
from keyturn.identifiers import keyring_s3_key
from keyturn_workers.core.errors import RefusedError
from keyturn_workers.core.storage_values import Headers, ObjectSummary
from keyturn_workers.pipeline.ingest import importing, v0
from keyturn_workers.pipeline.ingest.importing import Import, ImportResult, NotImported
from keyturn_workers.pipeline.sources.bucket import SourceBucket
from tests.unit.keyturn_workers.pipeline.ingest.scene import DEPLOYMENT, Outcomes, Scene
from tests.unit.keyturn_workers.pipeline.ingest.v0_objects import V0_KEK, v0_metadata, v0_seal

if TYPE_CHECKING:
    from keyturn.publisher import Publisher


async def run(
    scene: Scene,
    prefix: str = "",
    *,
    v0_kek: Secret | None = None,
    wait: bool = True,
    dry_run: bool = False,
) -> ImportResult:
    bucket = SourceBucket("drop", scene.source, scene.bucket, scene.own)
    publisher = None if dry_run else cast("Publisher", scene.outcomes)
    work = Import(bucket, scene.own, DEPLOYMENT, publisher, v0_kek=v0_kek, wait=wait)
    return await work.run(prefix)


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


async def test_a_dry_run_names_what_a_worker_would_refuse_and_why() -> None:
    scene = Scene()
    scene.own.plant(keyring_s3_key("acme"), b"{}", Headers({}))
    scene.put("good", "taken", "deleted")
    for name, headers in {
        "encrypted": Headers({"enc-algo": "x"}),
        "odd": Headers({"a-b": "1", "a_b": "2"}),
        "long": Headers({}, content_type="x" * 1100),
    }.items():
        scene.bucket.plant(f"in/{name}", b"x", headers)
    put_target(scene, "taken", "another upload")
    scene.own.plant("acme/deleted", b"", Headers({}))
    result = await run(scene, dry_run=True)
    assert result.statuses == {"not requested": 1}
    assert {each.s3_key: each.code for each in result.not_imported} == {
        "in/taken": "already_exists",
        "in/deleted": "already_exists",
        "in/encrypted": "malformed_request",
        "in/odd": "malformed_request",
        "in/long": "malformed_request",
    }
    assert all(each.detail for each in result.not_imported)


async def test_an_import_that_reports_refusals_itself_leaves_no_letters() -> None:
    scene = Scene()
    scene.put("bad")
    scene.outcomes.codes["bad"] = "body_too_large"
    await run(scene)
    assert scene.outcomes.letters == []
    await run(scene, wait=False)  # nobody else would learn of it
    assert [each.key for each in scene.outcomes.letters] == ["in/bad"]


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


# Objects of the earlier system.

DEK = new_dek()


def put_v0(scene: Scene, key: str, plaintext: bytes, **more: str) -> bytes:
    """Put such an object; return its body."""
    body = v0_seal(DEK, plaintext)
    scene.bucket.plant(f"in/{key}", body, Headers({**v0_metadata(user=DEK), **more}, "text/csv"))
    return body


async def test_objects_of_the_earlier_system_are_opened_and_uploaded_beside_others() -> None:
    """Their ids are those of the source's objects, so that a second import stores nothing."""
    scene = Scene()
    large = os.urandom(300_000)
    put_v0(scene, "old", large, file_name="a.txt")
    scene.put("new")
    result = await run(scene, v0_kek=V0_KEK)
    assert result.statuses == {"stored": 2}
    assert scene.outcomes.keys == ["in/new"]
    (uploaded,) = scene.outcomes.uploaded
    upload_id = uploaded.pop("upload_id")
    assert uploaded == {
        "key": "old",
        "body": large,
        "content_type": "text/csv",
        "metadata": {"file-name": "a.txt"},
    }
    put_target(scene, "old", upload_id)
    scene.outcomes.uploaded.clear()
    again = await run(scene, v0_kek=V0_KEK)
    assert again.statuses == {"already there": 1, "stored": 1}
    assert [each["upload_id"] for each in scene.outcomes.uploaded] == [upload_id]


async def test_without_the_key_such_an_object_is_requested_like_any_other() -> None:
    """A worker refuses it: it is encrypted already."""
    scene = Scene()
    put_v0(scene, "old", b"x")
    scene.outcomes.codes["old"] = "malformed_request"
    result = await run(scene)
    assert result.refused == {"malformed_request": 1}
    assert (scene.outcomes.keys, scene.outcomes.uploaded) == (["in/old"], [])


async def test_an_object_that_does_not_open_is_not_uploaded() -> None:
    scene = Scene()
    headers = {
        "other-key": Headers(v0_metadata(user=DEK)),
        "corrupt": Headers(v0_metadata(user=new_dek())),
        "names": Headers({**v0_metadata(user=DEK), "a-b": "c", "a_b": "d"}),
    }
    for key in ("corrupt", "names"):
        scene.bucket.plant(f"in/{key}", v0_seal(DEK, b"x"), headers[key])
    result = await run(scene, v0_kek=V0_KEK)
    assert result.refused == {"corrupt_object": 1, "malformed_request": 1}
    put_v0(scene, "other-key", b"x")
    result = await run(scene, "other", v0_kek=Secret(bytes(32)))
    assert result.refused == {"no_usable_wrap": 1}
    assert scene.outcomes.uploaded == []


@pytest.mark.parametrize("dry_run", [False, True])
async def test_an_object_that_is_too_large_for_memory_is_not_read(
    monkeypatch: pytest.MonkeyPatch, *, dry_run: bool
) -> None:
    scene = Scene()
    body = put_v0(scene, "fits", bytes(1000))
    put_v0(scene, "too-large", bytes(1001))
    monkeypatch.setattr(v0, "MAX_BYTES", len(body))
    result = await run(scene, "too", v0_kek=V0_KEK, dry_run=dry_run)
    assert result.refused == {"body_too_large": 1}
    assert scene.bucket.calls["stream"] == 0
    if not dry_run:
        assert (await run(scene, "fits", v0_kek=V0_KEK)).statuses == {"stored": 1}


async def test_at_most_a_few_bodies_are_in_memory_at_once() -> None:
    scene = Scene()
    for number in range(12):
        put_v0(scene, str(number), b"x")
    most = now = 0
    upload = scene.outcomes.upload

    async def counting(*args: object, **named: object) -> str:
        nonlocal most, now
        now += 1
        most = max(most, now)
        uploaded = await upload(*args, **named)  # type: ignore[arg-type]
        now -= 1
        return uploaded

    scene.outcomes.upload = counting  # type: ignore[method-assign]
    assert (await run(scene, v0_kek=V0_KEK)).statuses == {"stored": 12}
    assert most <= v0.AT_ONCE


async def test_a_source_that_is_to_be_emptied_loses_what_was_stored() -> None:
    """By the import: no worker reads these objects."""
    scene = Scene(delete=True)
    put_v0(scene, "stored", b"x")
    put_v0(scene, "refused", b"x")
    scene.outcomes.codes["refused"] = "already_exists"
    result = await run(scene, v0_kek=V0_KEK)
    assert (result.statuses, result.refused) == ({"stored": 1}, {"already_exists": 1})
    assert list(scene.bucket.stored_keys()) == ["in/refused"]


async def test_without_waiting_the_source_keeps_its_objects() -> None:
    scene = Scene(delete=True)
    put_v0(scene, "old", b"x")
    assert (await run(scene, v0_kek=V0_KEK, wait=False)).statuses == {"queued": 1}
    assert list(scene.bucket.stored_keys()) == ["in/old"]


async def test_an_object_that_changes_while_it_is_opened_is_looked_up_again() -> None:
    scene = Scene()
    put_v0(scene, "old", b"before")

    async def changed() -> None:
        put_v0(scene, "old", b"after")

    scene.bucket.before_next("stream", changed)
    assert (await run(scene, v0_kek=V0_KEK)).statuses == {"stored": 1}
    assert [each["body"] for each in scene.outcomes.uploaded] == [b"after"]
