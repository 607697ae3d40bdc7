"""Which master key opens how much, and which one may be dropped (SPEC 8.1). Pure.

`reports.status.key_usage` inspects objects and records. The command line and the console add up
its rows here, and decide by one rule. Dropping a master key too early loses every object and record
that it opens. So no key is called safe to drop before the whole bucket was inspected, while a sweep
is running, or while any object or record cannot be opened.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from keyturn.errors import UnknownMasterKeyError
from keyturn.messages.status import ObjectGroupStatus
from keyturn_workers.core.wording import plural

NONCURRENT: Final = "noncurrent"
UNREADABLE: Final = "unreadable"
FOREIGN: Final = "foreign"
KEYRING: Final = "keyring"
SWEEP_RECORD: Final = "sweep_record"
RECORDS: Final = (KEYRING, SWEEP_RECORD)


@dataclass(frozen=True, slots=True, order=True)
class KeyGroup:
    """Objects, older versions or records that are counted together.

    Attributes:
        kind: As in the view `objects`.
        master_key: The key that opens them. Of unreadable records, the unavailable key that they
            name. Empty if unknown.
        code: The reason why they do not open; empty if they do.
        is_record: They are unreadable records.
    """

    kind: str
    master_key: str = ""
    code: str = ""
    is_record: bool = False


KeyCensus = Mapping[KeyGroup, int]
"""The size of each group."""


def census_of(rows: Iterable[ObjectGroupStatus]) -> Counter[KeyGroup]:
    """Return the census of some rows of the view `objects`."""
    census: Counter[KeyGroup] = Counter()
    for row in rows:
        is_record = row.kind == UNREADABLE and row.record is not None
        names_key = is_record and row.code == UnknownMasterKeyError.code
        master_key = row.detail if names_key else row.master_key
        census[KeyGroup(row.kind, master_key or "", row.code or "", is_record)] += row.count
    return census


@dataclass(frozen=True, slots=True)
class MasterKeyUsage:
    """Counts of the data that one master key opens.

    `objects` is None if objects were not inspected. `noncurrent` counts older versions of objects.
    `is_active` means that new projects are enrolled under this key; None if unknown.
    """

    objects: int | None
    noncurrent: int
    keyrings: int
    sweep_records: int
    is_active: bool | None

    @property
    def records(self) -> int:
        """Keyrings and sweep records."""
        return self.keyrings + self.sweep_records


def usage_of(
    master_key: str, census: KeyCensus, *, is_active: bool | None, with_objects: bool = True
) -> MasterKeyUsage:
    """Return the usage of one master key.

    `with_objects` is False if the census has only records.
    """
    counts: Counter[str] = Counter()
    for group, number in census.items():
        if group.master_key == master_key and group.kind != UNREADABLE:
            counts[group.kind] += number
    noncurrent, keyrings, sweep_records = (
        counts.pop(kind, 0) for kind in (NONCURRENT, KEYRING, SWEEP_RECORD)
    )
    objects = counts.total() if with_objects else None
    return MasterKeyUsage(objects, noncurrent, keyrings, sweep_records, is_active)


def missing_keys(census: KeyCensus, available: Collection[str]) -> dict[str, int]:
    """Return the master keys that are not available, each with the number of its records."""
    missing: dict[str, int] = {}
    for group, number in census.items():
        if group.master_key and group.master_key not in available:
            is_record = group.is_record or group.kind in RECORDS
            missing.setdefault(group.master_key, 0)
            missing[group.master_key] += number if is_record else 0
    return dict(sorted(missing.items()))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Conditions that forbid dropping any master key.

    `running_sweeps` counts rotations too. No available key opens an unreadable object or record.
    `project` is the only project that was inspected; None if all were.
    """

    running_sweeps: int
    unreadable_objects: int
    unreadable_records: int
    project: str | None = None

    @classmethod
    def of(
        cls, census: KeyCensus, running_sweeps: int, project: str | None = None
    ) -> "Surroundings":
        """Return the conditions by a census."""
        unreadable: Counter[bool] = Counter()
        for group, number in census.items():
            if group.kind == UNREADABLE:
                unreadable[group.is_record] += number
        return cls(running_sweeps, unreadable[False], unreadable[True], project)


@dataclass(frozen=True, slots=True)
class DropVerdict:
    """A decision about dropping a master key (None: not known), and a sentence with the reason."""

    may_be_dropped: bool | None
    reason: str


def judge_drop(usage: MasterKeyUsage, around: Surroundings) -> DropVerdict:
    """Decide if the master key may be dropped."""
    if usage.objects is None:
        verb = "uses" if usage.records == 1 else "use"
        return DropVerdict(
            may_be_dropped=None,
            reason=f"{plural(usage.records, 'record')} {verb} it; objects were not counted",
        )
    uses = [plural(usage.objects, "object"), plural(usage.records, "record")]
    if usage.noncurrent:
        uses.insert(1, plural(usage.noncurrent, "noncurrent version"))
    if around.project is not None:
        return DropVerdict(may_be_dropped=None, reason=f"{', '.join(uses)} in {around.project}")
    if usage.objects or usage.noncurrent or usage.records:
        return DropVerdict(may_be_dropped=False, reason=f"in use by {', '.join(uses)}")
    if obstacle := _obstacle(usage, around):
        return DropVerdict(may_be_dropped=False, reason=f"not safe to drop: {obstacle}")
    return DropVerdict(may_be_dropped=True, reason="safe to drop: no object and no record uses it")


def missing_key(records: int) -> str:
    """The sentence about an unavailable master key that records name."""
    return f"missing from KEYTURN_MASTER_KEYS, but named by {plural(records, 'record')}"


def _obstacle(usage: MasterKeyUsage, around: Surroundings) -> str:
    if usage.is_active:
        return "it is the active master key"
    if running := around.running_sweeps:
        return f"{plural(running, 'sweep')} {'is' if running == 1 else 'are'} still running"
    counts = ((around.unreadable_objects, "object"), (around.unreadable_records, "record"))
    unreadable = " and ".join(plural(number, noun) for number, noun in counts if number)
    # The key that would open them is unknown.
    return unreadable and f"{unreadable} cannot be opened with any available key"
