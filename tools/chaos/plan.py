"""The plan of a run, from only the seed: its uploads and their plaintexts, and its actions. Pure.

Most uploads are plain. Some are published twice, some compete with a second writer of their key,
and some must be rejected, each for one reason of SPEC 12. A few keys are deleted and written again.

Actions are plain data that can be printed. Time is counted in publishes that the broker has
confirmed, not in seconds, so that the same seed injects the same fault at the same point of the
work on slow and fast machines.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tools.harness.canaries import MARKER

if TYPE_CHECKING:
    from collections.abc import Iterable

WORKERS = ("upload-1", "upload-2", "control-1", "sweep-1", "sweep-2", "ingest-1", "ingest-2")
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
    "poison",
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
    "delete object": 1,
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
# A late put could overwrite a body that was staged again: that is up to the publisher. A late
# delete could hide what was put into a source meanwhile: that is known (SPEC 17.3).
_SENSELESS = {("late", "put staged"), ("late", "doctor"), ("late", "delete object")}

STORED = "stored"
PROJECTS = ("amber", "birch", "cedar")
LATE_PROJECT = "dune"
"""Enrolled in the middle of the run, during the rotation of the master key."""
SOURCED_PROJECT = "elm"
"""Has only objects that were ingested from sources; see `tools.chaos.drops`."""
LOCKED_PROJECT = "fir"
CUSTOMER_KEYS = {LOCKED_PROJECT: ("fir-1", "fir-2"), "gorse": ("gorse-1",)}
"""The projects with customer keys, and their keys in order: `fir` has one from its enrollment on,
`gorse` from a rotation on."""
KEY_OUTAGES = ("key denied", "store cut off", "key disabled", "store stopped")
"""How customer keys are taken away: the store refuses one project's, or answers nobody."""
UNKNOWN_PROJECT = "unknown"

_KIB = 1024
_EDGES = (0, 1, 16383, 16384, 16385, 32768, 65536)
_STAGED_EVERY = 40
_PAIRS_EVERY = 30
_TWICE_EVERY = 25
_FLAWED_EVERY = 20
_LOCKED_EVERY = 12
_LATE_FROM = 0.6  # the share of the run after which the late project gets uploads
_CALLERS: tuple[dict[str, str], ...] = (
    {},
    {"author": "kim"},
    {"author": "kim", "note": "grüße aus köln"},
    {"n": "0" * 200},
)
_CONTENT_TYPES = (None, "text/plain", "application/x-canary; charset=utf-8")

# Each flaw and its error code; `unreadable` and `forged` cause no event.
FLAWS = {
    "unreadable": "malformed_request",
    "unknown field": "malformed_request",
    "forged": "bad_signature",
    "not permitted": "not_permitted",
    "expired": "request_expired",
    "unknown project": "unknown_project",
    "other intake key": "unknown_intake_key",
    "sealed for another key": "bad_seal",
    "nothing staged": "staged_body_missing",
    "too large": "body_too_large",
}
FLAWS_WITHOUT_EVENT = frozenset({"unreadable", "forged"})


@dataclass(frozen=True)
class Upload:
    """One upload, and how it may end: `stored`, or codes of SPEC 12.

    Exactly one upload of a `pair` must be stored. `deleted`: its key is deleted once it is stored.
    `rewrites`: the upload that wrote this key before; this one is published once that is stored.
    """

    number: int
    upload_id: str
    project: str
    key: str
    size_bytes: int
    staged: bool = False
    content_type: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    flaw: str | None = None
    pair: int | None = None
    deleted: bool = False
    rewrites: str | None = None
    may_end: frozenset[str] = frozenset({STORED})

    @property
    def is_plain(self) -> bool:
        """Whether it must be stored and its key is not used otherwise."""
        return self.may_end == {STORED} and not self.deleted


@dataclass(frozen=True)
class Load:
    """Uploads in the order of publishing; one that is published twice occurs twice."""

    order: tuple[Upload, ...]

    @property
    def uploads(self) -> tuple[Upload, ...]:
        """The uploads without repetitions."""
        return tuple({upload.number: upload for upload in self.order}.values())


def rng_for(seed: int, purpose: str) -> random.Random:
    """A reproducible random generator for one purpose of a run."""
    return random.Random(f"{seed}/{purpose}")  # noqa: S311  # not secret, but reproducible


def plaintext(seed: int, upload: Upload) -> bytes:
    """The bytes of an upload; they begin with the canary, cut to the size."""
    rng = rng_for(seed, f"plaintext {upload.number}")
    return (MARKER + rng.randbytes(upload.size_bytes))[: upload.size_bytes]


def make_load(seed: int, count: int) -> Load:
    """The uploads of a run: a function of the seed and the count."""
    rng = rng_for(seed, "load")
    flaws = [*FLAWS] * max(1, count // (_FLAWED_EVERY * len(FLAWS)))
    kinds = [*flaws, *["pair"] * (count // _PAIRS_EVERY), *["twice"] * (count // _TWICE_EVERY)]
    kinds += ["plain"] * max(0, count - len(kinds) - kinds.count("pair"))
    rng.shuffle(kinds)
    order: list[Upload] = []
    again: list[tuple[int, Upload]] = []
    for place, kind in enumerate(kinds):
        order += [upload for at, upload in again if at == place]
        late = place > _LATE_FROM * len(kinds)
        made = _upload(rng, len(order), late=late)
        if kind == "pair":
            order += _pair(rng, made)
        elif kind in FLAWS:
            order.append(_flawed(made, kind))
        else:
            order.append(made)
        if kind == "twice":
            again.append((place + rng.randint(1, 40), made))
    order += [upload for at, upload in again if at >= len(kinds)]
    return Load(_numbered(order))


def with_deletions(load: Load, seed: int, count: int) -> Load:
    """The load with `count` keys of its first half that are deleted and written again."""
    rng = rng_for(seed, "deletions")
    half = len(load.order) // 2
    sendings = Counter(upload.number for upload in load.order)
    once = [upload for upload in load.uploads if sendings[upload.number] == 1 and upload.is_plain]
    gone = rng.sample([upload for upload in once if upload.number < half], count)
    late = rng.sample([u for u in once if u.number > 1.5 * half and not u.staged], count)
    changed = {
        old.number: replace(
            old, deleted=True, may_end=frozenset({STORED, "deleted_key"}), metadata=()
        )
        for old in gone
    }
    for old, new in zip(gone, late, strict=True):
        refusals = frozenset({"deleted_key", "already_exists"})
        changed[new.number] = replace(
            new, project=old.project, key=old.key, rewrites=old.upload_id, may_end=refusals
        )
    return Load(tuple(changed.get(upload.number, upload) for upload in load.order))


def with_customer_keys(load: Load, seed: int) -> Load:
    """The load with one in twelve of its plain uploads in projects with customer keys."""
    rng = rng_for(seed, "customer keys")
    plain = [u for u in load.uploads if u.is_plain and u.rewrites is None and u.pair is None]
    chosen = rng.sample(plain, max(2, len(plain) // _LOCKED_EVERY))
    projects = {upload.number: list(CUSTOMER_KEYS)[n % 2] for n, upload in enumerate(chosen)}
    return Load(
        tuple(
            replace(upload, project=projects.get(upload.number, upload.project))
            for upload in load.order
        )
    )


def _upload(rng: random.Random, place: int, *, late: bool) -> Upload:
    staged = rng.randrange(_STAGED_EVERY) == 0
    projects = (*PROJECTS, LATE_PROJECT) if late else PROJECTS
    return Upload(
        number=-1,
        upload_id=str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        project=rng.choice(projects),
        key=f"{rng.choice(('a', 'b/c', 'ü mit raum', 'z'))}/{place:05}.bin",
        size_bytes=_size_bytes(rng, staged=staged),
        staged=staged,
        content_type=rng.choice(_CONTENT_TYPES),
        metadata=tuple(rng.choice(_CALLERS).items()),
    )


def _size_bytes(rng: random.Random, *, staged: bool) -> int:
    if staged:
        largest = 900 * _KIB if rng.random() < 0.7 else 7 * _KIB**2
        return rng.randint(257 * _KIB, largest)
    shape = rng.random()
    if shape < 0.1:
        return rng.choice(_EDGES)
    return rng.randint(0, 8 * _KIB) if shape < 0.97 else rng.randint(8 * _KIB, 250 * _KIB)


def _pair(rng: random.Random, made: Upload) -> list[Upload]:
    """Two writers of one key: the second one is rejected."""
    one_of = frozenset({STORED, "already_exists"})
    second = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    first = replace(made, pair=int(made.key[-9:-4]), may_end=one_of)
    return [first, replace(first, upload_id=second, size_bytes=rng.randint(0, 999), staged=False)]


def _flawed(made: Upload, flaw: str) -> Upload:
    project = UNKNOWN_PROJECT if flaw == "unknown project" else made.project
    ends = frozenset({FLAWS[flaw]})
    return replace(made, project=project, flaw=flaw, may_end=ends, staged=False, size_bytes=100)


def _numbered(order: Iterable[Upload]) -> tuple[Upload, ...]:
    """Each upload, numbered by the position of its first publish."""
    numbers: dict[str, int] = {}
    return tuple(
        replace(upload, number=numbers.setdefault(upload.upload_id, place))
        for place, upload in enumerate(order)
    )


@dataclass(frozen=True)
class Action:
    """An action once `at` publishes are confirmed.

    `what` is `kill`, `terminate` or `cut` (`to` a process), `stop broker` or `kill broker`,
    `rotate`, `sweep` or `enroll` (a project), `delete` (the key of an upload), `new master key`;
    `attack` (the attack `to`, on `times` requests); `steal keyring` (of the project `to`, as `kind`
    says, after the `process` was killed); `sources away` or `refuse events` (for `seconds`);
    `new customer key` (of the project `to`, the key `kind`); `customer key away` (as `kind` says);
    or
    `storm`: the fault
    `to` for every `every`-th request of a `kind`, `times` in total, `until` that many publishes
    are confirmed.
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
    source_outages: int
    key_outages: int
    event_refusal_s: float

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
            source_outages=2 + count // 1000,
            key_outages=min(len(KEY_OUTAGES), 2 + count // 1500),
            event_refusal_s=min(150, 10 + count / 10),
        )


def make_plan(seed: int, count: int) -> Plan:
    """The plan for a seed and a number of uploads."""
    amounts = Amounts.for_count(count)
    load = with_deletions(make_load(seed, count), seed, amounts.deletions)
    load = with_customer_keys(load, seed)
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
    actions += _of_sources(rng_for(seed, "sources"), total, amounts.source_outages)
    actions += _of_customer_keys(rng_for(seed, "key outages"), total, amounts.key_outages)
    at = int(total * rng_for(seed, "events").uniform(0.2, 0.8))
    actions.append(Action(at, "refuse events", seconds=amounts.event_refusal_s))
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
    killed = [name for _ in range(amounts.kills) for name in rng.sample(processes, k=8)]
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


def _of_sources(rng: random.Random, total: int, outages: int) -> list[Action]:
    """A rotation of their project, outages of their server, and an ingest worker killed in each."""
    actions = [Action(int(total * rng.uniform(0.6, 0.7)), "rotate", SOURCED_PROJECT)]
    for number in range(outages):
        at = int(total * rng.uniform(number + 0.1, number + 0.8) / outages)
        actions.append(Action(at, "sources away", seconds=round(rng.uniform(4, 9), 1)))
        actions.append(Action(at, "kill", rng.choice(("ingest-1", "ingest-2"))))
    return actions


def _of_customer_keys(rng: random.Random, total: int, outages: int) -> list[Action]:
    """Rotations to a new API key and to other customer keys, and outages in between.

    Of the first two outages one is of a key and one of the store.
    """

    def at(share: float) -> int:
        return int(total * rng.uniform(share - 0.05, share + 0.05))

    second = CUSTOMER_KEYS[LOCKED_PROJECT][1]
    late, (late_key,) = list(CUSTOMER_KEYS.items())[1]
    rotations = [
        Action(at(0.3), "rotate", LOCKED_PROJECT),
        Action(at(0.35), "new customer key", late, kind=late_key),
        Action(at(0.65), "new customer key", LOCKED_PROJECT, kind=second),
    ]
    first = rng.randrange(len(KEY_OUTAGES))
    kinds = [KEY_OUTAGES[(first + n) % len(KEY_OUTAGES)] for n in range(outages)]
    return rotations + [
        Action(at((number + 0.5) / outages * 0.8), "customer key away", LOCKED_PROJECT, kind=kind)
        for number, kind in enumerate(kinds)
    ]
