"""Uploads, deletes and rotations that are published: waits, failures, limits (SPEC 8.7, 9)."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest

from keyturn.errors import TooManyRequestsError, all_errors
from keyturn.identifiers import is_uuid, keyring_s3_key
from keyturn.messages import (
    DeleteRejected,
    ObjectDeleted,
    ProjectEnrolled,
    RotationAccepted,
    RotationRejected,
    UploadRejected,
    UploadStored,
)
from keyturn.publisher import (
    BrokerUnavailableError,
    EventsUnavailableError,
    NotDeliveredError,
    OutcomeUnknownError,
    PublisherError,
)
from keyturn.publisher.requests import new_id
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.gateway import publishing
from keyturn_workers.gateway.publishing import PendingRequests, event_of
from keyturn_workers.gateway.request import object_path
from keyturn_workers.gateway.shares import GatewayBusyError
from tests.unit.keyturn_workers.factories import MASTER_KEYS
from tests.unit.keyturn_workers.gateway.bench import API_KEY, KEY, NEW_API_KEY, ring_of
from tests.unit.keyturn_workers.gateway.serving import (
    PATH,
    ROTATIONS,
    Connection,
    FakePublisher,
    Serving,
)
from tests.unit.keyturn_workers.gateway.test_problems import STATUSES
from tools.harness.local_keys import build_keyring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from keyturn.messages import Event
    from keyturn.publisher import Publisher

_AT = "2026-11-24T10:00:00.000000Z"
_THEIR_KEY = "kt_" + "3" * 43
_BODY = json.dumps({"api_key": NEW_API_KEY}).encode()
_WAIT_S = 600.0


@dataclass(frozen=True)
class Kind:
    """A kind of request: how it is asked for, and the events that answer it."""

    method: str
    target: str
    theirs: str
    id_name: str
    rejected: Callable[..., Event]
    completed: Callable[[str], Event]
    completed_status: int
    serving: Callable[[bool], Serving] | None = None
    """Makes a gateway that allows it or not, where that is a setting."""

    async def ask(self, serving: Serving, target: str = "", **more: Any) -> Connection:
        if self.method == "DELETE":
            serving.bench.plant_sealed()
            serving.bench.storage.plant("other/x", b"x", Headers({}))
        body = b"" if self.method == "DELETE" else _BODY
        return await serving.ask(self.method, target or self.target, body=body, **more)

    def reject(self, code: str) -> Callable[[str], Event]:
        return lambda request_id: self.rejected(
            **{self.id_name: request_id}, project="acme", code=code, detail="said so", at=_AT
        )

    def published(self, serving: Serving) -> list[str]:
        """The ids of what was published."""
        publisher = serving.publisher
        if self.method == "PUT":
            return [upload.upload_id for upload in publisher.uploads]
        sent = publisher.deletes if self.method == "DELETE" else publisher.rotations
        return [each["id"] for each in sent]

    def pending(self, serving: Serving) -> PendingRequests:
        if self.method == "PUT":
            return serving.uploads.pending
        return (serving.deletes if self.method == "DELETE" else serving.rotations).pending


_KINDS = {
    "upload": Kind(
        "PUT",
        PATH,
        object_path("other", KEY),
        "upload_id",
        UploadRejected,
        lambda request_id: UploadStored(
            upload_id=request_id, project="acme", key=KEY, size=4, generation=1, at=_AT
        ),
        201,
    ),
    "delete": Kind(
        "DELETE",
        PATH,
        object_path("other", "x"),
        "request_id",
        DeleteRejected,
        lambda request_id: ObjectDeleted(request_id=request_id, project="acme", key=KEY, at=_AT),
        204,
        lambda allowed: Serving(delete_allowed=allowed),
    ),
    "rotation": Kind(
        "POST",
        ROTATIONS,
        "/v1/projects/other/rotations",
        "rotation_id",
        RotationRejected,
        lambda request_id: RotationAccepted(
            rotation_id=request_id, project="acme", generation=2, at=_AT
        ),
        202,
        lambda allowed: Serving(rotation_allowed=allowed),
    ),
}


@pytest.fixture(params=list(_KINDS.values()), ids=list(_KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture(
    params=[kind for kind in _KINDS.values() if kind.serving], ids=["delete", "rotation"]
)
def forbidden(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


async def _settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_without_a_preference_the_response_is_its_id(kind: Kind) -> None:
    serving = Serving()
    serving.publisher.answer = kind.completed
    got = await kind.ask(serving)
    assert got.status == 202
    (request_id,) = kind.published(serving)
    assert got.document() == {kind.id_name: request_id}
    assert is_uuid(request_id)
    assert "preference-applied" not in got.headers
    await serving.gateway.close()


async def test_waiting_returns_the_outcome(kind: Kind) -> None:
    serving = Serving()
    serving.publisher.answer = kind.completed
    got = await kind.ask(serving, headers={"prefer": "wait=9"})
    assert (got.status, got.headers["preference-applied"]) == (kind.completed_status, "wait=9")


async def test_waiting_returns_the_status_of_a_rejection(kind: Kind) -> None:
    serving = Serving()
    kind.pending(serving)._per_project = 1000
    for code in all_errors():
        serving.publisher.answer = kind.reject(code)
        got = await kind.ask(serving, headers={"prefer": "wait=9"})
        document = got.document()
        assert (got.status, document["code"], document["detail"]) == (
            STATUSES[code],
            code,
            "said so",
        )
        assert document[kind.id_name] == kind.published(serving)[-1]
    await serving.gateway.close()


@pytest.mark.parametrize("case", ["no event", "events cannot be read", "an unexpected event"])
async def test_waiting_in_vain_returns_202(kind: Kind, case: str) -> None:
    serving = Serving()
    if case == "events cannot be read":
        serving.publisher.wait_fails = EventsUnavailableError("no stream")
    elif case == "an unexpected event":
        serving.publisher.answer = lambda request_id: ProjectEnrolled(
            request_id=request_id, project="acme", generation=1, at=_AT
        )
    got = await kind.ask(serving, headers={"prefer": "wait=0"})
    assert (got.status, got.headers["preference-applied"]) == (202, "wait=0")
    assert got.document() == {kind.id_name: kind.published(serving)[0]}
    await serving.gateway.close()


@pytest.mark.parametrize(
    ("error", "may_be_published"),
    [
        (NotDeliveredError("at amqp://secret"), False),
        (BrokerUnavailableError("at amqp://secret"), False),
        (OutcomeUnknownError("at amqp://secret"), True),
        (PublisherError("at amqp://secret"), False),
    ],
)
async def test_a_failed_publication_is_a_503(
    kind: Kind, error: PublisherError, *, may_be_published: bool
) -> None:
    """The id is in the response, and the request pending, only if it may have been published."""
    serving = Serving()
    serving.publisher.fails = error
    got = await kind.ask(serving, headers={"prefer": "wait=5"})
    assert (got.status, got.headers["retry-after"]) == (503, "1")
    assert (kind.id_name in got.document()) is may_be_published
    assert "secret" not in got.content.decode()
    assert kind.pending(serving).in_all == int(may_be_published)
    await serving.gateway.close()


async def test_a_disconnect_while_waiting_ends_the_wait_alone(kind: Kind) -> None:
    serving, connection = Serving(), Connection()
    asking = asyncio.create_task(kind.ask(serving, headers={"prefer": "wait=20"}, on=connection))
    await _settle()
    connection.gone.set()
    async with asyncio.timeout(5):
        await asking
    assert len(kind.published(serving)) == 1
    pending = kind.pending(serving)
    assert (pending.in_all, len(pending._outcomes)) == (1, 1)
    await serving.gateway.close()
    assert not pending._outcomes


async def test_requests_without_an_outcome_are_limited_for_each_project(kind: Kind) -> None:
    """Nothing of the storage is read for one that is refused."""
    serving = Serving(max_pending=3, max_deletes=3, max_rotations=3)
    ring = ring_of(_THEIR_KEY, "other")
    serving.bench.storage.plant(
        keyring_s3_key("other"), build_keyring(ring, MASTER_KEYS), Headers({})
    )
    for _ in range(3):
        assert (await kind.ask(serving)).status == 202
    serving.bench.storage.calls.clear()
    refused = await kind.ask(serving)
    assert (refused.status, refused.document()["code"]) == (429, "too_many_requests")
    assert refused.headers["retry-after"] == "1"
    assert not serving.bench.storage.calls
    assert len(kind.published(serving)) == 3
    assert (await kind.ask(serving, kind.theirs, key=_THEIR_KEY)).status == 202
    await serving.gateway.close()


async def test_concurrent_requests_are_limited_too(kind: Kind) -> None:
    """Each counts before it reads the storage: they cannot all pass the check at once."""
    serving = Serving(max_pending=3, max_deletes=3, max_rotations=3)
    await serving.bench.authenticate()
    answers = await asyncio.gather(*(kind.ask(serving) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [202] * 3 + [429] * 5
    await serving.gateway.close()


async def test_where_it_is_forbidden_the_current_key_changes_nothing(forbidden: Kind) -> None:
    assert forbidden.serving is not None
    serving = forbidden.serving(False)  # noqa: FBT003
    await forbidden.ask(serving)
    before = serving.bench.storage.stored_keys()
    serving.bench.storage.calls.clear()
    got = await forbidden.ask(serving, headers={"prefer": "wait=9"})
    assert (got.status, got.document()["code"]) == (403, "not_permitted")
    assert "ask the operator" in got.document()["detail"]
    assert "retry-after" not in got.headers
    assert not forbidden.published(serving)
    assert not forbidden.pending(serving).in_all
    assert serving.bench.storage.stored_keys() == before
    assert not serving.bench.storage.calls


@pytest.mark.parametrize("project", ["acme", "nobody"])
@pytest.mark.parametrize("key", [NEW_API_KEY, None, "short"])
async def test_a_wrong_key_does_not_learn_that_it_is_forbidden(
    forbidden: Kind, project: str, key: str | None
) -> None:
    assert forbidden.serving is not None
    answers = [
        await forbidden.ask(
            forbidden.serving(allowed),
            forbidden.target.replace("acme", project),
            key=key,
        )
        for allowed in (True, False)
    ]
    first, second = answers
    assert first.status == 401
    assert (first.content, first.headers) == (second.content, second.headers)


async def test_closing_ends_all_waits(kind: Kind) -> None:
    serving = Serving()
    assert (await kind.ask(serving, key=API_KEY)).status == 202
    (outcome,) = kind.pending(serving)._outcomes
    await serving.gateway.close()
    assert outcome.cancelled()
    assert not kind.pending(serving)._outcomes


def _stored(upload_id: str) -> Event:
    at = "2026-11-24T10:00:00.000000Z"
    return UploadStored(upload_id=upload_id, project="a", key="k", size=1, generation=1, at=at)


def _pending(
    publisher: FakePublisher, *, wait_s: float = _WAIT_S, total: int = 9
) -> PendingRequests:
    return PendingRequests(
        cast("Publisher", publisher),
        "upload.requested",
        noun="uploads pending",
        per_project=3,
        total=total,
        outcome_wait_s=wait_s,
        project_bytes=100,
    )


@pytest.fixture
def publisher() -> FakePublisher:
    return FakePublisher()


@pytest.fixture
async def pending(publisher: FakePublisher) -> AsyncIterator[PendingRequests]:
    pending = _pending(publisher)
    yield pending
    await pending.close()


async def _published() -> None:
    """A publish that the broker confirms."""


async def _failed(error: Exception) -> None:
    raise error


async def _publish(
    pending: PendingRequests, project: str = "a", size_bytes: int = 1
) -> asyncio.Task[Event]:
    with pending.hold(project, new_id()) as request:
        request.resize(size_bytes)
        return await request.publish(_published())


async def test_a_project_at_its_limit_is_refused_and_no_other(pending: PendingRequests) -> None:
    for _ in range(3):
        await _publish(pending)
    with pytest.raises(TooManyRequestsError, match="the project has 3 uploads pending: retry"):
        await _publish(pending)
    await _publish(pending, "b")
    assert pending.in_all == 4


async def test_what_the_caller_knows_to_be_in_progress_counts_too(pending: PendingRequests) -> None:
    await _publish(pending)
    with pytest.raises(TooManyRequestsError), pending.hold("a", "x", others=2):
        pass
    with pending.hold("a", "x", others=1):
        pass


async def test_the_bytes_of_a_project_are_limited(pending: PendingRequests) -> None:
    await _publish(pending, size_bytes=60)
    with pytest.raises(TooManyRequestsError, match="60 bytes of uploads pending"):
        await _publish(pending, size_bytes=41)
    await _publish(pending, size_bytes=40)
    await _publish(pending, "b", size_bytes=100)
    await _publish(pending, "c", size_bytes=101)  # one request is never too large
    assert pending.in_all == 4


async def test_a_request_that_shrinks_gives_its_bytes_back(pending: PendingRequests) -> None:
    with pending.hold("a", "x") as request:
        for size_bytes in (10, 100, 0):
            request.resize(size_bytes)
        await _publish(pending, size_bytes=100)


async def test_an_outcome_frees_the_place(
    pending: PendingRequests, publisher: FakePublisher
) -> None:
    outcomes = [await _publish(pending, size_bytes=30) for _ in range(3)]
    await _settle()
    assert [event_of(outcome) for outcome in outcomes] == [None] * 3
    publisher.answer = _stored
    publisher.telling.set()
    await _settle()
    assert all(isinstance(event_of(outcome), UploadStored) for outcome in outcomes)
    assert pending.in_all == 0
    assert not pending._projects
    assert not pending._outcomes


async def test_what_was_not_published_frees_its_place(pending: PendingRequests) -> None:
    for _ in range(5):
        with pytest.raises(NotDeliveredError), pending.hold("a", "x") as request:
            await request.publish(_failed(NotDeliveredError("no")))
        with pytest.raises(ValueError, match="before"), pending.hold("a", "x"):
            raise ValueError("before it was published")
    assert pending.in_all == 0
    assert not pending._projects


async def test_what_may_have_been_published_keeps_its_place(pending: PendingRequests) -> None:
    for _ in range(3):
        with pytest.raises(OutcomeUnknownError), pending.hold("a", "x") as request:
            await request.publish(_failed(OutcomeUnknownError("?")))
    with pytest.raises(TooManyRequestsError):
        await _publish(pending)


async def test_while_events_cannot_be_read_no_place_is_freed(
    pending: PendingRequests, publisher: FakePublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A project would publish without a limit meanwhile. Once they can be read, they are."""
    monkeypatch.setattr(publishing, "_RETRY_S", 0.0)
    publisher.wait_fails = EventsUnavailableError("no stream")
    publisher.answer = _stored
    for _ in range(3):
        await _publish(pending)
        await _settle()
    assert len(publisher.waits) > 3
    with pytest.raises(TooManyRequestsError):
        await _publish(pending)
    publisher.wait_fails = None
    await _settle()
    assert pending.in_all == 0


@pytest.mark.parametrize("error", [None, EventsUnavailableError("no stream")])
async def test_an_outcome_that_does_not_become_known_frees_the_place_in_time(
    publisher: FakePublisher, error: Exception | None
) -> None:
    """Events may have been lost: a place that is never freed would be lost too."""
    publisher.wait_fails = error
    pending = _pending(publisher, wait_s=0.02)
    outcome = await _publish(pending)
    assert pending.in_all == 1
    await asyncio.wait((outcome,))
    await _settle()
    assert event_of(outcome) is None
    assert pending.in_all == 0


async def test_all_projects_together_are_limited(publisher: FakePublisher) -> None:
    pending = _pending(publisher, total=2)
    await _publish(pending, "a")
    await _publish(pending, "b")
    with pytest.raises(GatewayBusyError):
        await _publish(pending, "c")
    assert sorted(pending._projects) == ["a", "b"]
    await pending.close()


async def test_closing_ends_the_waits_of_pending_requests(pending: PendingRequests) -> None:
    outcome = await _publish(pending)
    await pending.close()
    await _settle()
    assert outcome.cancelled()
    assert event_of(outcome) is None
    assert pending.in_all == 0
