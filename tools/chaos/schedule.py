"""The schedule of a run's actions: a function of the seed. Pure; plain data that can be printed.

Time is counted in publishes that the broker has confirmed, not in seconds, so that the same seed
injects the same fault at the same point of the work on slow and fast machines.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tools.chaos.load import LATE_PROJECT, PROJECTS, Load, make_load, rng_for, with_deletions

if TYPE_CHECKING:
    import random

WORKERS = ("upload-1", "upload-2", "control-1", "sweep-1", "sweep-2")
GATEWAY = "gateway-1"
CONSOLE = "console-1"
PUBLISHER = "publisher"
EVERYBODY = "everybody"

FAULTS = (
    "500",
    "503",
    "slow",
    "reset",
    "request cut",
    "answer cut",
    "answer lost",
    "late",
)
"""The faults of storage requests; see `tools.chaos.fault_proxy`."""

FALSE_RESPONSES = {
    "404": ("read object", "read keyring"),
    "404 page": ("read object", "read keyring"),
    "date ahead": ("read object", "read keyring", "list", "put object", "copy object"),
    "date behind": ("read object", "read keyring", "list", "put object", "copy object"),
}
"""The faults that are false responses, each with its kinds of requests."""
_BEHIND_S = -30

RIVAL = "rival"
"""The hostile publisher's name and project."""

HOSTILE = (
    "sweep of its own",
    "sweep of another's",
    "upload of its own",
    "upload of another's",
    "rotation of its own",
    "rotation of another's",
    "delete of another's",
    "malformed",
)
"""The hostile publisher's requests, always with the id of another's request."""

WRITER = (
    "copy under another key",
    "copy to another queue",
    "copy with a forged attempt",
    "altered request",
    "unsigned request",
    "request under another's name",
    "old events",
    "false event",
)
"""The messages of the broker writer, which has no key."""

_VICTIMS = 3

THEFTS = {
    "rolled back": (),
    "removed": (),
    "rolled back before a fresh process": ("control-1", "sweep-1", "sweep-2"),
}
"""What a thief does to a keyring, each with the processes of which one is killed before."""

# Kinds of requests with their weights: the relative number of storms.
KINDS = {
    "put object": 3,
    "copy object": 3,
    "read object": 2,
    "read keyring": 2,
    "put keyring": 3,
    "put record": 4,
    "read record": 2,
    "delete record": 1,
    "list": 2,
    "put staged": 1,
    "read staged": 2,
    "delete staged": 1,
    "tags": 1,
    "multipart": 2,
    "doctor": 1,
}
# A late put could overwrite a body that was staged again: that is up to the publisher.
_SENSELESS = {("late", "put staged"), ("late", "doctor")}


@dataclass(frozen=True)
class Action:
    """An action once `at` publishes are confirmed.

    `what` is `kill`, `terminate` or `cut` (`to` a process), `stop broker` or `kill broker`,
    `rotate`, `sweep` or `enroll` (a project), `delete` (the key of an upload), `new master key`;
    `attack` (the attack `to`, on `times` requests); `steal keyring` (of the project `to`, as `kind`
    says, after the `process` was killed); or `storm`: the fault `to` for every `every`-th
    request of a `kind`, `times` in total, `until` that many publishes are confirmed.
    """

    at: int
    what: str
    to: str = ""
    kind: str = ""
    process: str = ""
    until: int = 0
    every: int = 0
    times: int = 0
    seconds: float = 0

    def shown(self) -> dict[str, Any]:
        """The action as JSON, without unused fields."""
        return {name: value for name, value in asdict(self).items() if value or name == "at"}


@dataclass(frozen=True)
class Plan:
    """A run: its load, and its actions in the order of `at`."""

    seed: int
    count: int
    load: Load = field(repr=False)
    actions: tuple[Action, ...]

    def shown(self) -> dict[str, Any]:
        """The schedule as JSON."""
        actions = [action.shown() for action in self.actions]
        return {"seed": self.seed, "uploads": self.count, "actions": actions}


@dataclass(frozen=True)
class Amounts:
    """How often each kind of action occurs in a run."""

    kills: int
    terminations: int
    cuts: int
    storms: int
    broker_stops: int
    broker_kills: int
    deletions: int
    false_responses: int
    attacks: int
    thefts: int

    @classmethod
    def for_count(cls, count: int) -> Amounts:
        """In proportion to the number of uploads, and each at least once."""
        return cls(
            kills=3 + count // 150,
            terminations=1 + count // 600,
            cuts=2 + count // 400,
            storms=30 + count // 12,
            broker_stops=1 + count // 2500,
            broker_kills=1 + count // 2500,
            deletions=2 + count // 1000,
            false_responses=2 + count // 200,
            attacks=1 + count // 200,
            thefts=1 + count // 1000,
        )


def make_plan(seed: int, count: int) -> Plan:
    """The plan for a seed and a number of uploads."""
    amounts = Amounts.for_count(count)
    load = with_deletions(make_load(seed, count), seed, amounts.deletions)
    rng = rng_for(seed, "schedule")
    total = len(load.order)
    rotations = _rotations(rng, total)
    actions = [*rotations, *_deletions(rng, load)]
    actions += _losses(rng, total, amounts)
    # Once early and once late: what it showed before, it must learn again.
    actions += [Action(int(total * share), "kill", CONSOLE) for share in (0.35, 0.8)]
    actions += [_storm(rng, total, fault, kind) for fault, kind in _faults(rng, amounts.storms)]
    actions += _false_responses(rng_for(seed, "untruths"), total, amounts.false_responses)
    actions += _attacks(rng_for(seed, "attacks"), total, amounts.attacks)
    actions += _thefts(rng_for(seed, "thefts"), total, rotations, amounts.thefts)
    return Plan(seed, count, load, tuple(sorted(actions, key=lambda action: action.at)))


def _rotations(rng: random.Random, total: int) -> list[Action]:
    """The rotations, including that of the master key, and an enrollment during it."""

    def at(share: float) -> int:
        return int(total * rng.uniform(share - 0.03, share + 0.03))

    twice, once, *_ = rng.sample(PROJECTS, k=3)
    return [
        Action(at(0.2), "rotate", twice),
        Action(at(0.3), "rotate", once),
        Action(at(0.4), "rotate", twice),
        Action(at(0.55), "new master key"),
        Action(at(0.56), "enroll", LATE_PROJECT),
        Action(at(0.75), "rotate", rng.choice((once, LATE_PROJECT))),
        Action(at(0.85), "sweep", twice),
    ]


def _deletions(rng: random.Random, load: Load) -> list[Action]:
    half = len(load.order) // 2
    return [
        Action(int(half * rng.uniform(1, 1.4)), "delete", upload.upload_id)
        for upload in load.uploads
        if upload.deleted
    ]


def _losses(rng: random.Random, total: int, amounts: Amounts) -> list[Action]:
    """Killed and stopped workers, broker outages, dropped connections."""

    def anywhere() -> int:
        return int(total * rng.uniform(0.02, 0.97))

    processes = (*WORKERS, GATEWAY)
    # Each process once before any process twice.
    killed = [name for _ in range(amounts.kills) for name in rng.sample(processes, k=6)]
    actions = [Action(anywhere(), "kill", name) for name in killed[: amounts.kills]]
    ended = rng.choices(WORKERS, k=amounts.terminations)
    actions += [Action(anywhere(), "terminate", name) for name in ended]
    cut = rng.choices((*WORKERS, PUBLISHER, EVERYBODY), k=amounts.cuts)
    actions += [Action(anywhere(), "cut", name) for name in cut]
    actions += [Action(anywhere(), "stop broker") for _ in range(amounts.broker_stops)]
    actions += [Action(anywhere(), "kill broker") for _ in range(amounts.broker_kills)]
    return actions


def _faults(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """`count` pairs of fault and kind: faults equally often, kinds by their weights."""
    pairs = [
        (fault, kind)
        for kind, weight in KINDS.items()
        for fault in FAULTS
        for _ in range(weight)
        if (fault, kind) not in _SENSELESS
    ]
    rng.shuffle(pairs)
    return [pairs[number % len(pairs)] for number in range(count)]


def _storm(rng: random.Random, total: int, fault: str, kind: str) -> Action:
    at = int(total * rng.uniform(0.02, 0.95))
    return Action(
        at,
        "storm",
        fault,
        kind=kind,
        until=at + max(15, total // 25),
        every=rng.randint(1, 4),
        times=rng.randint(1, 6),
        seconds=round(rng.uniform(0.3, 4), 2) if fault in {"slow", "late"} else 0,
    )


def _false_responses(rng: random.Random, total: int, each: int) -> list[Action]:
    """Storms of false responses: `each` per fault and kind."""
    storms = [
        _storm(rng, total, fault, kind)
        for fault, kinds in FALSE_RESPONSES.items()
        for kind in kinds
        for _ in range(each)
    ]
    shifts = {"date ahead": rng.randint(1, 24) * 3600, "date behind": _BEHIND_S}
    # They last longer than others, so that rare reads get them too.
    return [
        replace(storm, seconds=shifts.get(storm.to, 0), until=storm.at + max(15, total // 8))
        for storm in storms
    ]


def _attacks(rng: random.Random, total: int, each: int) -> list[Action]:
    """`each` attacks of each kind, once there is something to attack."""
    return [
        Action(int(total * rng.uniform(0.05, 0.97)), "attack", name, times=_VICTIMS)
        for name in (*HOSTILE, *WRITER)
        for _ in range(each)
    ]


def _thefts(rng: random.Random, total: int, rotations: list[Action], each: int) -> list[Action]:
    """`each` thefts of each kind, of projects that were to be rotated in the first half."""
    rotated = [a for a in rotations if a.what == "rotate" and a.at < total / 2]
    thefts = []
    for number, (kind, processes) in enumerate(list(THEFTS.items()) * each):
        if number % len(rotated) == 0:
            rng.shuffle(rotated)
        rotation = rotated[number % len(rotated)]
        at = int(rng.uniform(rotation.at + total * 0.05, total * 0.95))
        process = rng.choice(processes) if processes else ""
        thefts.append(Action(at, "steal keyring", rotation.to, kind=kind, process=process))
    return thefts
