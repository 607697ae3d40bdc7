"""Plans that a person confirms, and the jobs that carry them out (SPEC 16.2). Pure.

A plan names each letter by its digest, so exactly what the person confirmed is moved: a letter that
arrives later is not, and one that is gone is reported.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

from keyturn_workers.console.dead.letters import IndexedLetter, Obstacle, digest_text

Move = Literal["replay", "discard"]
JobState = Literal["waiting", "running", "stopping", "done", "stopped", "failed"]

TYPED_ABOVE: Final = 100
"""Letters above which a replay, too, is confirmed by typing their number."""
EXAMPLES: Final = 10
"""Letters that a confirmation lists."""
FAILURES_MAX: Final = 1000
"""Letters that stayed in their queue and are listed for one job."""
ENDED: Final[frozenset[JobState]] = frozenset(("done", "stopped", "failed"))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a person is about to do.

    Attributes:
        plan_id: Random.
        person: Who prepared it, and alone may confirm it.
        letters: By queue: digests, and how many copies of each.
        count: How many letters that is.
        selection: Which ones, in words.
        excluded: Selected letters that are not in it, by what keeps them from being replayed.
        targets: By work queue: how many letters a replay sends there.
        examples: The first of them.
        as_of: When the index was read from which they were selected.
        back: The path of the page that they were selected on.
    """

    plan_id: str
    person: str
    move: Move
    letters: Mapping[str, Counter[int]]
    count: int
    selection: str
    excluded: Mapping[Obstacle, int]
    targets: Mapping[str, int]
    examples: tuple[IndexedLetter, ...]
    made_at: datetime
    as_of: datetime | None
    back: str

    @property
    def needs_number(self) -> bool:
        """Whether the number of letters must be typed."""
        return self.move == "discard" or self.count > TYPED_ABOVE


def make_plan(
    plan_id: str,
    person: str,
    move: Move,
    selected: Iterable[IndexedLetter],
    *,
    selection: str,
    made_at: datetime,
    as_of: datetime | None,
    back: str,
) -> Plan:
    """A plan for these letters; a replay leaves out what cannot be replayed."""
    letters: dict[str, Counter[int]] = {}
    excluded: Counter[Obstacle] = Counter()
    targets: Counter[str] = Counter()
    examples: list[IndexedLetter] = []
    for letter in selected:
        if move == "replay" and letter.obstacle:
            excluded[letter.obstacle] += 1
            continue
        letters.setdefault(letter.queue, Counter())[letter.digest] += 1
        targets[letter.work_queue] += 1
        if len(examples) < EXAMPLES:
            examples.append(letter)
    count = sum(counted.total() for counted in letters.values())
    return Plan(
        plan_id=plan_id,
        person=person,
        move=move,
        letters=letters,
        count=count,
        selection=selection,
        excluded=excluded,
        targets=targets,
        examples=tuple(examples),
        made_at=made_at,
        as_of=as_of,
        back=back,
    )


@dataclass(frozen=True, slots=True)
class Failure:
    """A letter that stayed in its queue, and why."""

    queue: str
    digest: int
    message_id: str
    code: str
    detail: str

    @property
    def digest_text(self) -> str:
        """The digest as addresses name it."""
        return digest_text(self.digest)


@dataclass(slots=True)
class Job:
    """A plan that was confirmed, while it is carried out and afterward.

    Attributes:
        wanted: How many letters it is about.
        done: Replayed or discarded.
        kept: Still in their queues, although they were to be moved.
        gone: Not in their queues any more: somebody else moved them, or they were dropped.
        uncertain: Moved when the broker was lost, so they may be in their queues as well.
        failures: What was kept, up to `FAILURES_MAX`.
        problem: Why it failed, or what it waits for.
    """

    job_id: str
    person: str
    move: Move
    selection: str
    reason: str | None
    wanted: int
    queues: tuple[str, ...]
    requested_at: datetime
    state: JobState = "waiting"
    started_at: datetime | None = None
    ended_at: datetime | None = None
    done: int = 0
    kept: int = 0
    gone: int = 0
    uncertain: int = 0
    failures: list[Failure] = field(default_factory=list)
    problem: str = ""

    @property
    def left(self) -> int:
        """Letters that were not looked at yet, or never will be."""
        return max(0, self.wanted - self.done - self.kept - self.gone)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens."""
        return self.state in ENDED

    @property
    def is_stopping(self) -> bool:
        """Whether no further letter is to be moved."""
        return self.state == "stopping" or self.has_ended

    def stop(self) -> None:
        """Move no further letter: the part that is under way is completed."""
        if self.state == "waiting":
            self.state = "stopped"
        elif self.state == "running":
            self.state = "stopping"

    def fail(self, failure: Failure) -> None:
        """Note a letter that stays in its queue."""
        self.kept += 1
        if len(self.failures) < FAILURES_MAX:
            self.failures.append(failure)
