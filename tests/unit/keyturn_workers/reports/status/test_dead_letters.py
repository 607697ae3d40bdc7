"""The oldest dead letters are shown with counts by code, and none is removed (SPEC 16.1)."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn.messages import StatusReported, StatusRequested, encode
from keyturn.messages.status import DeadQueueStatus
from keyturn.topology import DEAD_QUEUES
from keyturn_workers.reports.dead_letters.queue import (
    LockedError,
    UnreadableQueueError,
    read_letters,
)
from keyturn_workers.reports.status import dead_letters as module
from keyturn_workers.reports.status.dead_letters import DeadLetterView
from tests.unit.keyturn_workers.reports.dead_letters.memory_broker import (
    Letter,
    MemoryBroker,
    letter,
    upload,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn_workers.reports.dead_letters.queue import Letters

_UPLOADS, _UNSIGNED = "keyturn.upload.dead", "keyturn.unsigned.dead"
_NOW = datetime(2026, 11, 26, 10, tzinfo=UTC)


class _Scene:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broker = MemoryBroker()
        for queue in DEAD_QUEUES:
            self.broker.fill(queue)
        self.now_s = 0.0
        self.reads = 0
        self.problem: Exception | None = None
        self.takes_s = 0.0
        self.view = self.new_view(wait_s=10)
        monkeypatch.setattr(module, "open_letters", self._open)

    def new_view(self, wait_s: float) -> DeadLetterView:
        return DeadLetterView(
            "amqp://broker",
            lambda: _NOW + timedelta(seconds=self.now_s),
            lambda: self.now_s,
            wait_s,
        )

    @asynccontextmanager
    async def _open(self, *_: object) -> AsyncIterator[Letters]:
        if self.problem is not None:
            raise self.problem
        self.reads += 1
        letters = self.broker.letters()
        yield letters
        await letters.channel.close()
        self.now_s += self.takes_s

    async def report(self, page: int = 1, **fields: Any) -> StatusReported:
        request = StatusRequested(
            request_id="d2f4a6c8-1b3d-4e5f-8a9c-0b2d4f6e8a71",
            project="*",
            requested_at="2026-11-26T10:00:00Z",
            view="dead_letters",
            page=page,
            **fields,
        )
        found = await self.view.page(request)
        return StatusReported(
            request_id=request.request_id, project="*", view="dead_letters", **found
        )


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> _Scene:
    return _Scene(monkeypatch)


async def test_letters_are_described_without_secrets_and_stay_where_they_are(scene: _Scene) -> None:
    document = upload()
    dead = letter(document, **{"keyturn-dead-at": "2026-11-26T09:00:00Z"})
    odd = Letter(b"\xff", {"keyturn-code": "No Code", "keyturn-detail": "x" * 5000}, None)
    scene.broker.fill(_UPLOADS, dead)
    scene.broker.fill(_UNSIGNED, odd)
    report = await scene.report()
    first, second = report.dead_letters or ()
    assert (first.queue, first.letter) == (_UPLOADS, hashlib.sha256(dead.body).hexdigest())
    assert (first.message_id, first.type) == (document["upload_id"], "upload.requested")
    assert (first.project, first.code, first.publisher) == ("acme", "request_expired", "api")
    assert first.object_key == document["key"]
    assert (first.work_queue, first.obstacle) == ("keyturn.upload", "expired")
    assert first.dead_at == "2026-11-26T09:00:00.000000Z"
    assert document["upload_id"] in (first.text or "")
    assert document["sealed_key"]["ciphertext"] not in report.model_dump_json()
    assert (second.code, second.work_queue, second.obstacle) == (None, None, "type")
    assert len(second.detail or "") == 300
    assert {code.code: (code.queue, code.count) for code in report.codes or ()} == {
        "request_expired": (_UPLOADS, 1),
        "unknown": (_UNSIGNED, 1),
    }
    assert (report.total, report.of_all, report.is_complete) == (2, 2, True)
    assert [len(queue) for queue in scene.broker.queues.values()] == [1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({"queue": _UPLOADS}, ["b", "a"]),
        ({"queue": _UNSIGNED}, ["c"]),
        ({"code": "bad_seal"}, ["a"]),
        ({"code": "unknown"}, ["c"]),
        ({"queue": _UPLOADS, "code": "unknown"}, []),
        ({"text": "TICKET bad_seal"}, ["a"]),
        ({"text": "nowhere"}, []),
    ],
)
async def test_a_filter_keeps_what_matches_all_of_it(
    scene: _Scene, wanted: dict[str, Any], names: list[str]
) -> None:
    scene.broker.fill(
        _UPLOADS,
        Letter(b"a", {"keyturn-code": "bad_seal", "keyturn-detail": "Ticket 4711"}, "a"),
        Letter(b"b", {"keyturn-code": "unknown_project"}, "b"),
    )
    scene.broker.fill(_UNSIGNED, Letter(b"c", {}, "c"))
    report = await scene.report(filter=wanted)
    assert [row.message_id for row in report.dead_letters or ()] == names
    assert (report.total, report.of_all, len(report.codes or ())) == (len(names), 3, 3)


async def test_pages_are_the_oldest_thousand_of_each_queue_the_newest_of_them_first(
    scene: _Scene,
) -> None:
    letters = [Letter(b"%d" % n, {"keyturn-code": "bad_seal"}, str(n)) for n in range(1010)]
    scene.broker.fill(_UPLOADS, *letters)
    report = await scene.report(page=3, limit=400)
    assert [row.message_id for row in report.dead_letters or ()] == [
        str(n) for n in range(199, -1, -1)
    ]
    assert (report.total, report.is_complete) == (1000, False)
    assert (report.dead_queues or ())[0] == DeadQueueStatus(queue=_UPLOADS, depth=1010, read=1000)
    assert not (await scene.report(page=4, limit=400)).dead_letters


async def test_what_was_read_is_remembered_with_its_time_as_long_as_reading_took(
    scene: _Scene,
) -> None:
    scene.takes_s = 2.0
    for after_s, reads, at in [(0, 1, "00:00"), (19, 1, "00:00"), (1, 2, "00:22")]:
        scene.now_s += after_s
        report = await scene.report()
        assert (scene.reads, report.at) == (reads, f"2026-11-26T10:{at}.000000Z")


async def test_while_others_read_the_last_reading_answers(scene: _Scene) -> None:
    scene.problem = LockedError()
    first = await scene.report()
    assert (first.dead_letters, first.dead_queues, first.is_complete) == ((), (), False)
    scene.problem = None
    await scene.report()
    scene.now_s, scene.problem = 100.0, LockedError()
    assert (await scene.report()).at == "2026-11-26T10:00:00.000000Z"
    scene.problem = ConnectionRefusedError("amqp://user:secret@broker")
    with pytest.raises(StorageUnavailableError, match="cannot be read") as refused:
        await scene.report()
    assert "secret" not in str(refused.value)


async def test_a_report_does_not_wait_for_a_reading_that_takes_long(
    scene: _Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker reads two reports at once: other views would wait behind a long queue."""
    going_on = asyncio.Event()

    async def slow(*arguments: Any) -> Any:
        await going_on.wait()
        return await read_letters(*arguments)

    monkeypatch.setattr(module, "read_letters", slow)
    scene.broker.fill(_UPLOADS, Letter(b"a", {}, "a"))
    scene.view = scene.new_view(wait_s=0)
    for _ in range(2):
        assert not (await scene.report()).is_complete
    going_on.set()
    await asyncio.wait({task for task in asyncio.all_tasks() if task.get_name() == "dead letters"})
    found = await scene.report()
    assert [row.message_id for row in found.dead_letters or ()] == ["a"]
    assert (scene.reads, found.is_complete) == (1, True)


async def test_a_page_of_odd_letters_is_bounded_in_bytes(scene: _Scene) -> None:
    wide = '{"type": "upload.requested", "key": "%s"}' % ("\U0001f511" * 2000)
    scene.broker.fill(_UPLOADS, *(Letter(wide.encode(), {}, str(number)) for number in range(200)))
    report = await scene.report(limit=1000)
    assert 0 < len(report.dead_letters or ()) < 200
    assert (report.total, report.is_complete) == (200, False)
    assert len(encode(report)) < 600 * 1024


async def test_codes_that_were_made_up_are_bounded_in_number(scene: _Scene) -> None:
    scene.broker.fill(
        _UPLOADS,
        *(Letter(b"{}", {"keyturn-code": f"made_up_{n % 600}"}, str(n)) for n in range(900)),
    )
    report = await scene.report(limit=1)
    assert len(report.codes or ()) == 500
    assert sum(each.count for each in report.codes or ()) == 800  # those with most letters
    assert not report.is_complete


async def test_a_letter_with_a_lone_surrogate_does_not_spoil_the_report(scene: _Scene) -> None:
    odd = b'{"type": "upload.requested", "metadata": {"a": ["\\ud800"]}}'
    scene.broker.fill(_UNSIGNED, Letter(odd, {}, "odd"))
    report = await scene.report()
    assert b"unreadable" in encode(report)


async def test_a_queue_that_cannot_be_read_hides_no_other(
    scene: _Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.broker.fill(_UNSIGNED, letter(upload()))

    async def read(letters: Letters, queue: str, *rest: Any) -> Any:
        if queue == _UPLOADS:
            raise UnreadableQueueError(queue, 7)
        return await read_letters(letters, queue, *rest)

    monkeypatch.setattr(module, "read_letters", read)
    report = await scene.report()
    assert [row.queue for row in report.dead_letters or ()] == [_UNSIGNED]
    depths = {row.queue: (row.depth, row.read) for row in report.dead_queues or ()}
    assert (depths[_UPLOADS], depths[_UNSIGNED]) == ((7, 0), (1, 1))
    assert not report.is_complete


async def test_letters_that_cannot_be_described_are_not_shown_as_none(
    scene: _Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise TypeError("odd")

    with monkeypatch.context() as patched:
        patched.setattr(module, "read_letters", fail)
        with pytest.raises(StorageUnavailableError, match="TypeError"):
            await scene.report()
    assert (await scene.report()).is_complete
