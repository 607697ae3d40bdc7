"""The rotation protocol under a scheduler that means ill: whatever it does, the oracle's laws hold.

Uploads, rotations, master key rotations, deletes and sweeps run at once on three workers.
Requests are held, lost, answered late and answered never; workers are killed in the midst of
anything, stall, and come back; messages come twice and in any order; time passes. At the end
all is let go on, and every request must have come to its end. `KEYTURN_PROTOCOL_EXAMPLES` in
the environment asks for so many stories, other ones each time; without it they are always
the same ones.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from contracts.names import KEYRINGS_PREFIX, SWEEPS_PREFIX
from tests.unit.protocol.process import Options
from tests.unit.protocol.wire import BEGUN, SENT
from tests.unit.protocol.world import World
from workers.storage import Differences

if TYPE_CHECKING:
    from collections.abc import Callable

from tests.unit.protocol.wire import Call

_EXAMPLES: Final = os.environ.get("KEYTURN_PROTOCOL_EXAMPLES")
_SETTINGS: Final = settings(
    max_examples=int(_EXAMPLES or 80),
    stateful_step_count=20,
    derandomize=_EXAMPLES is None,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

PROJECTS: Final = st.sampled_from(("acme", "beta"))
KEYS: Final = st.sampled_from(("a", "b", "c/d", "e"))
WORKERS: Final = st.integers(0, 2)
PICKS: Final = st.integers(0, 1000)
# Requests whose loss, delay or death is worth a story.
MOMENTS: Final[dict[str, Callable[[Call], bool]]] = {
    "a copy": lambda call: call.op in ("copy_onto_itself", "copy_part"),
    "an object's put": lambda call: call.is_write and not call.key.startswith(".keyturn/"),
    "a keyring's put": lambda call: call.op == "put" and call.key.startswith(KEYRINGS_PREFIX),
    "a plan's put": lambda call: call.op == "put" and call.key.endswith("sweep.json"),
    "a result's put": lambda call: call.op == "put" and "/results/" in call.key,
    "a keyring's read": lambda call: call.op == "read" and call.key.startswith(KEYRINGS_PREFIX),
    "an object's read": lambda call: call.op in ("read_start", "head", "stream"),
    "a record's read": lambda call: call.op == "read" and call.key.startswith(SWEEPS_PREFIX),
    "a listing": lambda call: call.op.startswith("list"),
    "an event": lambda call: call.op.startswith("tell"),
    "a message": lambda call: call.op.startswith(("send", "put off")),
    "a removal": lambda call: call.op.startswith("delete"),
}
MOMENT: Final = st.sampled_from(sorted(MOMENTS))
FATES: Final = ("hold", "begun", "midst", "midst", "late", "lose", "lose after", "crash", "cut")
WRITE: Final = st.sampled_from(("a copy", "a copy", "an object's put", "an object's read"))


class Protocol(RuleBasedStateMachine):
    """One story."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None
        self.held: list[Call] = []

    @property
    def on(self) -> World:
        assert self.world is not None
        return self.world

    @initialize(
        versioned=st.booleans(),
        completion=st.booleans(),
        tags=st.booleans(),
        in_parts=st.booleans(),
        unencrypted=st.frozensets(WORKERS, max_size=2),
        plaintext=st.booleans(),
    )
    def begin(
        self,
        *,
        versioned: bool,
        completion: bool,
        tags: bool,
        in_parts: bool,
        unencrypted: frozenset[int],
        plaintext: bool,
    ) -> None:
        differences = Differences(conditional_completion=completion, copy_keeps_tags=tags)
        self.world = World(
            options=Options(
                versioned=versioned,
                differences=differences,
                copy_limit_bytes=200 if in_parts else 10**9,
                unencrypted=unencrypted,
            )
        )
        more: dict[str, Any] = {"plaintext": "allowed"} if plaintext else {}
        self.on.enroll("acme", **more)
        for key in ("a", "b", "e"):
            self.on.upload("acme", key, key.encode() * 100)
        self.go_on(seconds=30)

    # What is asked for.

    @rule(project=PROJECTS, plaintext=st.booleans())
    def enroll(self, project: str, *, plaintext: bool) -> None:
        more: dict[str, Any] = {"plaintext": "allowed"} if plaintext else {}
        self.on.enroll(project, **more)

    @rule(
        project=PROJECTS,
        key=KEYS,
        size=st.sampled_from((0, 5, 300)),
        content=st.integers(0, 255),
        staged=st.booleans(),
    )
    def upload(self, project: str, key: str, size: int, content: int, *, staged: bool) -> None:
        self.on.upload(project, key, bytes([content]) * size, staged=staged)

    @rule(project=PROJECTS)
    def rotate(self, project: str) -> None:
        self.on.rotate(project)

    @rule(
        project=st.sampled_from(("acme", "beta", "*")),
        master_key=st.sampled_from((None, "m1", "m2")),
        encrypt=st.booleans(),
        dry_run=st.sampled_from((False, False, True)),
    )
    def sweep(self, project: str, master_key: str | None, *, encrypt: bool, dry_run: bool) -> None:
        named: dict[str, Any] = {} if master_key is None else {"master_key": master_key}
        self.on.sweep(project, encrypt_plaintext=encrypt, dry_run=dry_run, **named)

    @rule(project=PROJECTS, key=KEYS)
    def delete(self, project: str, key: str) -> None:
        self.on.delete(project, key)

    @rule(pick=PICKS)
    def ask_again(self, pick: int) -> None:
        names = list(self.on.requests)
        self.on.replay(names[pick % len(names)])

    # Who goes on.

    @rule(picks=st.lists(PICKS, min_size=1, max_size=12))
    def some_go_on(self, picks: list[int]) -> None:
        for pick in picks:
            calls = [call for call in self.on.moving() if call not in self.held]
            letters = self.on.ready()
            if not calls and not letters:
                return
            at = pick % (len(calls) + len(letters))
            if at < len(calls):
                self.on.step(calls[at])
            else:
                self.on.deliver(letters[at - len(calls)])

    @rule(seconds=st.sampled_from((0.5, 4, 20, 60)))
    def go_on(self, seconds: float) -> None:
        self.on.run(hold=self.held.__contains__, seconds=seconds)

    @rule(seconds=st.sampled_from((0.6, 3, 7, 14)))
    def time_passes(self, seconds: float) -> None:
        self.on.advance(seconds)

    # What goes wrong.

    @rule(
        moment=MOMENT,
        fate=st.sampled_from(FATES),
        skip=st.integers(0, 3),
    )
    def something_happens_at(self, moment: str, fate: str, skip: int) -> None:
        """Go on until a request of this kind is sent; then it meets its fate."""
        for _ in range(skip + 1):
            call = self._next(moment)
            if call is None:
                return
            if _ < skip:
                self.on.step(call)
        assert call is not None
        self._meet(call, fate)

    def _next(self, moment: str) -> Call | None:
        def found() -> Call | None:
            return next(
                (
                    call
                    for call in self.on.calls
                    if MOMENTS[moment](call)
                    and call.state == SENT
                    and call not in self.held
                    and not call.is_ghost
                ),
                None,
            )

        self.on.run(until=found, hold=self.held.__contains__, seconds=20)
        return found()

    def _meet(self, call: Call, fate: str) -> None:
        """Whatever is neither served nor forgotten by it is held from then on."""
        match fate:
            case "begun" | "midst" | "late":
                self._serve_in_part(call, fate)
            case "lose":
                self.on.network.lose(call)
            case "lose after":
                self._serve_in_part(call, "late")
                self.on.network.lose(call)
            case "crash":
                self.on.crash(call.sender)
            case "cut":
                self.on.disconnect(call.sender, noticed=False)
        if call in self.on.calls:
            self.held.append(call)

    def _serve_in_part(self, call: Call, fate: str) -> None:
        self.on.step(call, answer=fate != "late")
        if call.state == BEGUN and fate == "midst":
            self.on.step(call)

    @rule(
        first=st.sampled_from(("rotate", "rotate", "sweep", "encrypt", "upload", "delete")),
        moment=st.one_of(WRITE, MOMENT),
        fate=st.sampled_from(("hold", *FATES)),
        then=st.lists(
            st.sampled_from(("rotate", "delete", "rotate", "delete", "sweep", "upload", "encrypt")),
            min_size=1,
            max_size=2,
        ),
        seconds=st.sampled_from((0.5, 5, 8, 16, 40)),
        key=KEYS,
    )
    def meanwhile(
        self, first: str, moment: str, fate: str, then: list[str], seconds: float, key: str
    ) -> None:
        """One request is held up at a moment of its way; others come to pass; then it goes on."""
        self._ask(first, key)
        call = self._next(moment)
        if call is None:
            return
        self._meet(call, fate)
        if call.key.startswith("acme/"):
            key = call.key.removeprefix("acme/")
        for what in then:
            self._ask(what, key)
            self.go_on(seconds=seconds)
        while self.held:
            self.what_was_held_goes_on(0)
        self.nothing_is_violated()

    def _ask(self, what: str, key: str) -> None:
        match what:
            case "rotate":
                self.on.rotate("acme")
            case "sweep":
                standing = self.on.oracle.projects["acme"].states[-1].master_key
                self.on.sweep("acme", master_key="m2" if standing == "m1" else "m1")
            case "encrypt":
                self.on.sweep("acme", encrypt_plaintext=True)
            case "upload":
                self.on.upload("acme", key, key.encode() * 200, staged=True)
            case "delete":
                self.on.delete("acme", key)

    @precondition(lambda self: self.held)
    @rule(pick=PICKS)
    def what_was_held_goes_on(self, pick: int) -> None:
        call = self.held.pop(pick % len(self.held))
        if call in self.on.calls:
            self.on.step(call)

    @rule(worker=WORKERS, arriving=st.booleans())
    def crash(self, worker: int, *, arriving: bool) -> None:
        self.on.crash(self.on.processes[worker], arriving=lambda _: arriving)

    @rule(worker=WORKERS, noticed=st.booleans())
    def disconnect(self, worker: int, *, noticed: bool) -> None:
        self.on.disconnect(self.on.processes[worker], noticed=noticed)

    @rule(worker=WORKERS)
    def stall_or_come_back(self, worker: int) -> None:
        process = self.on.processes[worker]
        process.stalled = not process.stalled

    @rule(pick=PICKS)
    def duplicate(self, pick: int) -> None:
        if self.on.queue:
            self.on.duplicate(self.on.queue[pick % len(self.on.queue)])

    @invariant()
    def nothing_is_violated(self) -> None:
        if self.world is not None:
            assert self.world.oracle.violations == []

    def teardown(self) -> None:
        if self.world is None:
            return
        try:
            if self.world.holds():
                self.world.settle()
                assert self.world.oracle.violations == []
        finally:
            self.world.close()


def test_whatever_happens_nothing_is_violated() -> None:
    run_state_machine_as_test(Protocol, settings=_SETTINGS)
