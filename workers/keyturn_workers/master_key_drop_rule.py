"""Whether a master key may be dropped, and why: one rule for command line and console (SPEC 8.1).

Dropping a master key too early loses everything that it opens. So no key is called safe to
drop on the word of less than the whole bucket, while a sweep is running, or while anything
cannot be opened. Pure.
"""

from dataclasses import dataclass

from keyturn_workers.wording import plural


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """What depends on one master key.

    Attributes:
        objects: Objects that it opens; None if objects were not inspected.
        noncurrent: Older versions of objects that it opens.
        records: Keyrings and records of sweeps that it opens.
        is_active: Whether new projects are enrolled under it; None if unknown.
    """

    objects: int | None
    noncurrent: int
    records: int
    is_active: bool | None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What forbids dropping any master key.

    Attributes:
        running_sweeps: Sweeps and rotations that have not ended.
        unreadable_objects: Objects that no available key opens.
        unreadable_records: Records that no available key opens.
        project: The only project that was inspected; None if all were.
    """

    running_sweeps: int
    unreadable_objects: int
    unreadable_records: int
    project: str | None = None


@dataclass(frozen=True, slots=True)
class DropVerdict:
    """Whether a master key may be dropped (None: not known), and the sentence that says why."""

    may_be_dropped: bool | None
    reason: str


def judge_drop(usage: KeyUsage, around: Surroundings) -> DropVerdict:
    """Whether the master key may be dropped."""
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
    """The sentence about a master key that records name, and that is not available."""
    return f"missing from KEYTURN_MASTER_KEYS, but named by {plural(records, 'record')}"


def _obstacle(usage: KeyUsage, around: Surroundings) -> str:
    if usage.is_active:
        return "it is the active master key"
    if running := around.running_sweeps:
        return f"{plural(running, 'sweep')} {'is' if running == 1 else 'are'} still running"
    counts = ((around.unreadable_objects, "object"), (around.unreadable_records, "record"))
    unreadable = " and ".join(plural(number, noun) for number, noun in counts if number)
    # Which key would open them is unknown.
    return unreadable and f"{unreadable} cannot be opened with any available key"
