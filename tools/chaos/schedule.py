"""What is done to a run, and when: a function of the seed. Pure; plain data, printed and kept.

When is counted in sendings that the broker has confirmed, never in seconds, so that the
same seed does the same harm at the same point of the work, on a slow machine as on a fast one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tools.chaos.load import LATE_PROJECT, PROJECTS, Load, dice_of, make_load, with_deletions

if TYPE_CHECKING:
    import random

WORKERS = ("upload-1", "upload-2", "control-1", "sweep-1", "sweep-2")
GATEWAY = "gateway-1"
PUBLISHER = "publisher"
EVERYBODY = "everybody"

HARMS = (
    "500",
    "503",
    "slow",
    "reset",
    "request cut",
    "answer cut",
    "answer lost",
    "late",
)
"""What may befall a request to the storage; `tools.chaos.fault_proxy` says what each one is."""

UNTRUTHS = {
    "404": ("read object", "read keyring"),
    "404 page": ("read object", "read keyring"),
    "date ahead": ("read object", "read keyring", "list", "put object", "copy object"),
    "date behind": ("read object", "read keyring", "list", "put object", "copy object"),
}
"""Harms that are untrue answers, each with the kinds of requests that it befalls."""
_BEHIND_S = -30

RIVAL = "rival"
"""The hostile publisher's name, and its project."""

HOSTILE = (
    "sweep dry of its own",
    "sweep of its own",
    "sweep of another's",
    "upload of its own",
    "upload of another's",
    "rotation of its own",
    "rotation of another's",
    "delete of another's",
    "malformed",
)
"""What the hostile publisher signs, always under the id of another's request."""

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
"""What the broker writer publishes; it has no key."""

_VICTIMS = 3

# Kinds of requests with the weight of each: how many storms it gets beside the others.
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
# A put that comes late could overwrite a body that was staged anew: a publisher's own matter.
_SENSELESS = {("late", "put staged"), ("late", "doctor")}


@dataclass(frozen=True)
class Action:
    """Something done once `at` sendings are confirmed.

    `what` is `kill`, `terminate` or `cut` (`to` a process), `stop broker` or `kill broker`,
    `rotate`, `sweep` or `enrol` (a project), `delete` (the key of an upload), `new master key`;
    `attack` (the one of this name, on so many `times` requests); or `storm`: the harm `to` every
    `every`-th coming request of a `kind`, `times` in all, `until` so many sendings are confirmed.
    """

    at: int
    what: str
    to: str = ""
    kind: str = ""
    until: int = 0
    every: int = 0
    times: int = 0
    seconds: float = 0

    def shown(self) -> dict[str, Any]:
        """Itself as JSON, without what it does not use."""
        return {name: value for name, value in asdict(self).items() if value or name == "at"}


@dataclass(frozen=True)
class Plan:
    """A whole run: what is sent, and what is done meanwhile in the order of `at`."""

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
    """How often each thing is done in a run."""

    kills: int
    terminations: int
    cuts: int
    storms: int
    broker_stops: int
    broker_kills: int
    deletions: int
    untruths: int
    attacks: int

    @classmethod
    def for_count(cls, count: int) -> Amounts:
        """More for more uploads, and of each at least one."""
        return cls(
            kills=3 + count // 150,
            terminations=1 + count // 600,
            cuts=2 + count // 400,
            storms=30 + count // 12,
            broker_stops=1 + count // 2500,
            broker_kills=1 + count // 2500,
            deletions=2 + count // 1000,
            untruths=2 + count // 200,
            attacks=1 + count // 200,
        )


def make_plan(seed: int, count: int) -> Plan:
    """The run of a seed with so many uploads."""
    amounts = Amounts.for_count(count)
    load = with_deletions(make_load(seed, count), seed, amounts.deletions)
    dice = dice_of(seed, "schedule")
    whole = len(load.order)
    actions = [*_turns(dice, whole), *_deletions(dice, load)]
    actions += _losses(dice, whole, amounts)
    actions += [_storm(dice, whole, harm, kind) for harm, kind in _harms(dice, amounts.storms)]
    actions += _untruths(dice_of(seed, "untruths"), whole, amounts.untruths)
    actions += _attacks(dice_of(seed, "attacks"), whole, amounts.attacks)
    return Plan(seed, count, load, tuple(sorted(actions, key=lambda action: action.at)))


def _turns(dice: random.Random, whole: int) -> list[Action]:
    """The rotations, the master key's among them, and an enrolment beside it."""

    def at(share: float) -> int:
        return int(whole * dice.uniform(share - 0.03, share + 0.03))

    twice, once, *_ = dice.sample(PROJECTS, k=3)
    return [
        Action(at(0.2), "rotate", twice),
        Action(at(0.3), "rotate", once),
        Action(at(0.4), "rotate", twice),
        Action(at(0.55), "new master key"),
        Action(at(0.56), "enrol", LATE_PROJECT),
        Action(at(0.75), "rotate", dice.choice((once, LATE_PROJECT))),
        Action(at(0.85), "sweep", twice),
    ]


def _deletions(dice: random.Random, load: Load) -> list[Action]:
    half = len(load.order) // 2
    return [
        Action(int(half * dice.uniform(1, 1.4)), "delete", upload.upload_id)
        for upload in load.uploads
        if upload.deleted
    ]


def _losses(dice: random.Random, whole: int, amounts: Amounts) -> list[Action]:
    """Workers killed and ended, the broker lost, connections cut."""

    def anywhere() -> int:
        return int(whole * dice.uniform(0.02, 0.97))

    processes = (*WORKERS, GATEWAY)
    # Each process once before any one twice.
    killed = [name for _ in range(amounts.kills) for name in dice.sample(processes, k=6)]
    actions = [Action(anywhere(), "kill", name) for name in killed[: amounts.kills]]
    ended = dice.choices(WORKERS, k=amounts.terminations)
    actions += [Action(anywhere(), "terminate", name) for name in ended]
    cut = dice.choices((*WORKERS, PUBLISHER, EVERYBODY), k=amounts.cuts)
    actions += [Action(anywhere(), "cut", name) for name in cut]
    actions += [Action(anywhere(), "stop broker") for _ in range(amounts.broker_stops)]
    actions += [Action(anywhere(), "kill broker") for _ in range(amounts.broker_kills)]
    return actions


def _harms(dice: random.Random, count: int) -> list[tuple[str, str]]:
    """So many pairs of harm and kind: each harm about as often, kinds by their weights."""
    pairs = [
        (harm, kind)
        for kind, weight in KINDS.items()
        for harm in HARMS
        for _ in range(weight)
        if (harm, kind) not in _SENSELESS
    ]
    dice.shuffle(pairs)
    return [pairs[number % len(pairs)] for number in range(count)]


def _storm(dice: random.Random, whole: int, harm: str, kind: str) -> Action:
    at = int(whole * dice.uniform(0.02, 0.95))
    return Action(
        at,
        "storm",
        harm,
        kind=kind,
        until=at + max(15, whole // 25),
        every=dice.randint(1, 4),
        times=dice.randint(1, 6),
        seconds=round(dice.uniform(0.3, 4), 2) if harm in {"slow", "late"} else 0,
    )


def _untruths(dice: random.Random, whole: int, each: int) -> list[Action]:
    """Storms of untrue answers: so many of each harm to each kind that it befalls."""
    storms = [
        _storm(dice, whole, harm, kind)
        for harm, kinds in UNTRUTHS.items()
        for kind in kinds
        for _ in range(each)
    ]
    shifts = {"date ahead": dice.randint(1, 24) * 3600, "date behind": _BEHIND_S}
    # They last longer than others: what is read seldom is to hear them as well.
    return [
        replace(storm, seconds=shifts.get(storm.to, 0), until=storm.at + max(15, whole // 8))
        for storm in storms
    ]


def _attacks(dice: random.Random, whole: int, each: int) -> list[Action]:
    """So many of each kind, once there is something to attack."""
    return [
        Action(int(whole * dice.uniform(0.05, 0.97)), "attack", name, times=_VICTIMS)
        for name in (*HOSTILE, *WRITER)
        for _ in range(each)
    ]
