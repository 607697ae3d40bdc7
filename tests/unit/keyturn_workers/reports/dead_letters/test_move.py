"""Letters are moved in one pass, each on record before, and none is lost (SPEC 12, 15.3, 16.1)."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import NotPermittedError
from keyturn.topology import UPLOAD_QUEUE
from keyturn_workers.reports.dead_letters import move as move_module
from keyturn_workers.reports.dead_letters.letters import DeadLetter, code_of
from keyturn_workers.reports.dead_letters.move import Move, Moved, Problem, _Pass, move_letters
from tests.unit.keyturn_workers.reports.dead_letters.memory_broker import Letter, MemoryBroker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aio_pika import Message
    from aio_pika.abc import AbstractIncomingMessage

    from keyturn.messages import AuditAction, DeadLettersAction

_DEAD = "keyturn.upload.dead"


def _letter(name: str, code: str = "bad_seal", **headers: Any) -> Letter:
    return Letter(name.encode(), {"keyturn-code": code, **headers}, name)


def _is_bad_seal(message: AbstractIncomingMessage) -> bool:
    return code_of(message.headers) == "bad_seal"


@dataclass
class _Scene:
    """A queue of letters, and what becomes of them, in order.

    Attributes:
        steps: `record`, `publish` and `ack`, with the letter where it is known.
        fails_at: The step that loses the broker.
    """

    broker: MemoryBroker = field(default_factory=MemoryBroker)
    steps: list[str] = field(default_factory=list)
    outcomes: list[tuple[str, str, str]] = field(default_factory=list)
    reported: list[tuple[str, Problem | None]] = field(default_factory=list)
    fails_at: int | None = None

    def __post_init__(self) -> None:
        self.broker.on_publish = lambda: self._step("publish")
        self.broker.on_ack = lambda: self._step("ack")

    def _step(self, name: str) -> None:
        if len(self.steps) == self.fails_at:
            self.fails_at = None
            raise ConnectionError(name)
        self.steps.append(name)

    async def record(self, action: AuditAction, letter: DeadLetter, outcome: str) -> None:
        self._step("record")
        await asyncio.sleep(0)
        self.outcomes.append((action, str(letter.message_id), outcome))

    async def move(
        self,
        action: DeadLettersAction = "replay",
        selects: Callable[[AbstractIncomingMessage], bool] = _is_bad_seal,
        **options: Any,
    ) -> Moved:
        def report(letter: DeadLetter, problem: Problem | None) -> None:
            self.reported.append((str(letter.message_id), problem))

        letters = self.broker.letters()
        move = Move(action, selects, self.record, report=report, **options)
        try:
            return await move_letters(letters, _DEAD, move)
        finally:
            await letters.channel.close()

    @property
    def left(self) -> list[str | None]:
        return [letter.message_id for letter in self.broker.queues[_DEAD]]

    @property
    def sent(self) -> list[str | None]:
        assert {queue for queue, _ in self.broker.sent} <= {UPLOAD_QUEUE}
        return [message.message_id for _, message in self.broker.sent]


def _scene(*letters: Letter) -> _Scene:
    scene = _Scene()
    scene.broker.fill(_DEAD, *letters)
    return scene


def _mixed(count: int) -> list[Letter]:
    return [_letter(str(n), "bad_seal" if n % 3 else "unknown_project") for n in range(count)]


async def test_one_code_goes_back_as_it_was_sent_and_the_rest_keeps_its_order() -> None:
    scene = _scene(*_mixed(700))
    assert await scene.move() == Moved(moved=466)
    assert scene.sent == [str(n) for n in range(700) if n % 3]
    assert scene.left == [str(n) for n in range(700) if not n % 3]
    _, copy = scene.broker.sent[0]
    assert (copy.body, copy.headers) == (b"1", {})
    assert scene.reported == [(name, None) for name in scene.sent]


async def test_discarded_letters_are_gone_and_nothing_is_published() -> None:
    scene = _scene(*_mixed(6))
    assert await scene.move("discard") == Moved(moved=4)
    assert (scene.left, scene.sent) == (["0", "3"], [])
    assert {action for action, _, _ in scene.outcomes} == {"dead_letter.discarded"}


async def test_a_letter_is_on_record_before_its_copy_and_acknowledged_after_it() -> None:
    scene = _scene(_letter("a"), _letter("b"))
    await scene.move()
    assert scene.steps == ["record"] * 2 + ["publish"] * 2 + ["ack"] * 2
    assert scene.outcomes == [("dead_letter.replayed", name, "started") for name in "ab"]


@pytest.mark.parametrize("action", ["replay", "discard"])
async def test_what_cannot_be_recorded_is_not_moved(action: DeadLettersAction) -> None:
    scene = _scene(*_mixed(5))
    scene.fails_at = 0
    with pytest.raises(ConnectionError):
        await scene.move(action)
    assert (scene.left, scene.sent) == (["0", "1", "2", "3", "4"], [])


async def _crashes(action: DeadLettersAction, step: int) -> list[str]:
    """What is wrong after a crash at this step, and once the request was delivered again."""
    scene = _scene(*_mixed(12))
    scene.fails_at = step
    selected = {str(n) for n in range(12) if n % 3}
    wrong: list[str] = []

    def check() -> None:
        gone = selected - {*scene.left}
        if action == "replay" and gone - {*scene.sent}:
            wrong.append("lost")
        moved = gone | ({*scene.sent} if action == "replay" else set())
        if moved - {name for _, name, _ in scene.outcomes}:
            wrong.append("not on record")

    with suppress(ConnectionError):
        await scene.move(action)
    check()
    await scene.move(action)
    check()
    if scene.left != ["0", "3", "6", "9"]:
        wrong.append("not moved, or out of order")
    if any(scene.sent.count(name) > 2 for name in selected):
        wrong.append("sent more than twice")
    return wrong


@pytest.mark.parametrize("action", ["replay", "discard"])
@pytest.mark.parametrize("step", range(25))
async def test_a_crash_at_any_step_loses_no_letter(action: DeadLettersAction, step: int) -> None:
    """The request is delivered again, and the next worker moves the rest."""
    assert await _crashes(action, step) == []


class _AcknowledgesBeforeTheConfirmation(_Pass):
    async def _move(self, part: Sequence[Any]) -> None:
        for each in part:
            await self.move.record("dead_letter.replayed", each.letter, "started")
            await self.browser.ack([each.tag])
        for each in part:
            copy = await self._copy(each, {})
            assert copy is not None
            await self._publish(copy)


class _RecordsWhatIsDone(_Pass):
    async def _move(self, part: Sequence[Any]) -> None:
        for each in part:
            copy = await self._copy(each, {})
            assert copy is not None
            await self._publish(copy)
            await self.browser.ack([each.tag])
        for each in part:
            await self.move.record("dead_letter.replayed", each.letter, "done")


@pytest.mark.parametrize(
    ("broken", "caught"),
    [(_AcknowledgesBeforeTheConfirmation, "lost"), (_RecordsWhatIsDone, "not on record")],
)
async def test_another_order_of_steps_is_caught(
    broken: type[Any], caught: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(move_module, "_Pass", broken)
    assert caught in [wrong for step in range(24) for wrong in await _crashes("replay", step)]


async def test_a_letter_that_the_broker_does_not_accept_stays_and_is_recorded_as_failed() -> None:
    scene = _scene(*_mixed(5))
    scene.broker.refuses = {"2"}
    problem = Problem(None, "the broker did not accept it")
    assert await scene.move() == Moved(moved=2, left=1, first_problem=problem)
    assert (scene.sent, scene.left) == (["1", "4"], ["0", "2", "3"])
    assert scene.outcomes[-1] == ("dead_letter.replayed", "2", "failed")
    assert ("2", problem) in scene.reported


async def test_a_letter_without_its_body_stays_and_says_so() -> None:
    dropped = _letter("b", "bad_seal", **{"keyturn-body-dropped": "0" * 64})
    scene = _scene(_letter("a"), dropped)
    moved = await scene.move()
    assert (moved.moved, moved.left, scene.left) == (1, 1, ["b"])
    assert moved.first_problem is not None
    assert moved.first_problem.code == "malformed_request"
    assert "with bad_seal the body is not kept" in moved.first_problem.detail
    assert [name for _, name, _ in scene.outcomes] == ["a"]
    assert (await scene.move("discard")).moved == 1


async def test_a_copy_that_is_refused_leaves_the_letter_and_no_record() -> None:
    async def refuse(message: AbstractIncomingMessage, dead: str) -> Message:
        raise NotPermittedError(f"{message.message_id} of {dead}")

    scene = _scene(_letter("a"))
    problem = Problem("not_permitted", "a of keyturn.upload.dead")
    assert await scene.move(copy=refuse) == Moved(left=1, first_problem=problem)
    assert (scene.left, scene.outcomes) == (["a"], [])


@pytest.mark.parametrize("limit", [1, 3, 100])
async def test_at_most_the_oldest_up_to_a_limit_are_moved(limit: int) -> None:
    scene = _scene(*_mixed(300))
    await scene.move(limit=limit)
    selected = [str(n) for n in range(300) if n % 3]
    assert scene.sent == selected[:limit]
    assert scene.left == [str(n) for n in range(300) if str(n) not in scene.sent]


async def test_memory_is_bounded_by_further_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(move_module, "_HELD_MAX_BYTES", 3)
    letters = _mixed(40)
    letters[1].headers["keyturn-body-dropped"] = "0" * 64
    scene = _scene(*letters)
    held: list[int] = []
    record = scene.record

    async def noted(*arguments: Any) -> None:
        held.append(sum(1 for step in scene.steps if step == "record") - len(scene.sent))
        await record(*arguments)

    monkeypatch.setattr(scene, "record", noted)
    moved = await scene.move(limit=20)
    assert (moved.moved, moved.left) == (19, 1)
    assert sorted(scene.sent, key=lambda name: int(name or "")) == scene.sent
    assert scene.left == [str(n) for n in range(40) if str(n) not in scene.sent]
    assert max(held) <= 4


async def test_a_letter_that_dies_again_is_not_moved_twice() -> None:
    scene = _scene(_letter("a"), _letter("b"))
    scene.broker.on_publish = lambda: scene.broker.fill(_DEAD, _letter("again"))
    assert (await scene.move()).moved == 2
    assert sorted(map(str, scene.left)) == ["again", "again"]


async def test_two_copies_with_one_id_are_never_in_flight_together() -> None:
    """The client library could give each of them the other's outcome."""
    twins = [Letter(str(n).encode(), {"keyturn-code": "bad_seal"}, "same") for n in range(3)]
    scene = _scene(*twins)
    scene.broker.delays = True
    assert (await scene.move()).moved == 3
    assert scene.broker.most_in_flight == {"same": 1}
