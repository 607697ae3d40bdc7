"""Marks of keyrings on the broker, and how a keyring read compares with its mark (SPEC 5.5).

A bucket writer cannot forge a keyring, but can put an earlier state of it back. The bucket alone
cannot show that, so the broker does: each change of a keyring leaves a mark on a stream. This
module has the marks that a process knows, and the decision about one read. No I/O.

Uploads and rotations compare the keyrings that they read. A rolled-back keyring of an unused
project would stay unnoticed, as would one that no worker has marked since an upgrade. So sweep
workers compare all keyrings several times an hour, and read only changed ones.
"""

import enum
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol, Self

import orjson
import structlog

from keyturn.errors import (
    CustomerKeyUnavailableError,
    KeyringRolledBackError,
    MarksUnavailableError,
    ProjectErasedError,
    StorageUnavailableError,
)
from keyturn.identifiers import MARK_LIMIT
from keyturn_workers.core.customer_keys import CustomerKey
from keyturn_workers.core.keyring import Keyring
from keyturn_workers.core.keyring_record import customer_key_from_json, customer_key_to_json

# Further projects are only counted. After the loss of a broker, all projects are affected.
_MAX_LOGGED: Final = 100
_log = structlog.get_logger()

_PACKED: Final = struct.Struct("<QQQQ32s")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Mark:
    """A state of a keyring, as a mark names it.

    Attributes:
        serial: The keyring's serial.
        digest: SHA-256 of the record, 32 bytes.
        generation: The current generation.
        customer_keys: Those that are not cleared, by generation. The digest determines them.
        erased: True if the project was erased; the digest determines it, too.
    """

    serial: int
    digest: bytes
    generation: int
    customer_keys: Mapping[int, CustomerKey] = field(default_factory=dict, compare=False)
    erased: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, keyring: Keyring, digest: bytes) -> Self:
        """The mark of a keyring, given the SHA-256 of its record."""
        generation, customer_keys = keyring.current.generation, keyring.customer_keys
        return cls(keyring.serial, digest, generation, customer_keys, keyring.is_erased)


def customer_keys_to_json(customer_keys: Mapping[int, CustomerKey]) -> list[dict[str, Any]]:
    """The customer keys as a mark has them: each once, with its generations."""
    generations: dict[CustomerKey, list[int]] = {}
    for generation, customer_key in customer_keys.items():
        generations.setdefault(customer_key, []).append(generation)
    return [
        {**customer_key_to_json(key), "generations": numbers}
        for key, numbers in generations.items()
    ]


def customer_keys_from_json(documents: Iterable[Mapping[str, Any]]) -> dict[int, CustomerKey]:
    """The customer keys of a mark, by generation.

    Raises:
        ValueError: one is malformed.
    """
    return {
        generation: customer_key_from_json(fields)
        for fields in documents
        for generation in fields["generations"]
    }


class Finding(enum.Enum):
    """The result of comparing a keyring read with the marks.

    Attributes:
        MARKED: It is the state that the highest mark names.
        UNMARKED: It is newer than its mark, or it has no serial and no mark: it must be marked
            before anything relies on it.
        UNKNOWN: It has a serial, and no mark: the broker was lost, or a worker died between the
            put of a first keyring and its mark.
        ROLLED_BACK: It is older than a mark that was received before the read began, or another
            record of the same serial.
        READ_AGAIN: The same, but the mark was received only after the read began.
    """

    MARKED = enum.auto()
    UNMARKED = enum.auto()
    UNKNOWN = enum.auto()
    ROLLED_BACK = enum.auto()
    READ_AGAIN = enum.auto()


def compare(read: Mark, known: Mark | None, *, began_after: bool) -> Finding:
    """Compare a keyring read with the highest mark of its project, if it has a mark.

    `began_after` is true if the read began after that mark was received. A read that began earlier
    may show the state before a rotation that took place meanwhile.
    """
    if known is None:
        return Finding.UNMARKED if read.serial == 0 else Finding.UNKNOWN
    if read.serial > known.serial:
        return Finding.UNMARKED
    if (read.serial, read.digest) == (known.serial, known.digest):
        return Finding.MARKED
    return Finding.ROLLED_BACK if began_after else Finding.READ_AGAIN


class MarkState(enum.StrEnum):
    """The state of a keyring by its mark, as an operator sees it.

    Attributes:
        CURRENT: It is the state that its mark names.
        UNMARKED: It is newer than its mark, or was never marked: the next read marks it.
        ROLLED_BACK: It is older than its mark, or another state of the same serial.
        REMOVED: There is no keyring, but a mark says that there was.
        UNKNOWN: It has a serial and no mark.
    """

    CURRENT = enum.auto()
    UNMARKED = enum.auto()
    ROLLED_BACK = enum.auto()
    REMOVED = enum.auto()
    UNKNOWN = enum.auto()

    @property
    def is_contradicted(self) -> bool:
        """True if no worker uses the keyring until an operator acts."""
        return self not in (MarkState.CURRENT, MarkState.UNMARKED)


_STATES: Final = {
    Finding.MARKED: MarkState.CURRENT,
    Finding.UNMARKED: MarkState.UNMARKED,
    Finding.UNKNOWN: MarkState.UNKNOWN,
    Finding.ROLLED_BACK: MarkState.ROLLED_BACK,
}


class MarkTable:
    """The highest mark of each project, in about 200 bytes a project without customer keys.

    Attributes:
        received: The number of marks received; a reader notes it before it begins a read.
    """

    def __init__(self) -> None:
        self._marks: dict[str, bytes] = {}
        # Marks of a replaced stream that the new one does not show yet.
        self._lost: dict[str, bytes] = {}
        self.received = 0

    def receive(self, project: str, mark: Mark, *, at: datetime = _EPOCH) -> bool:
        """Take the next mark of the stream; return whether it is the project's highest now.

        Of several marks with one serial the first counts, and no mark lowers a serial: a mark that
        is published again, or by a worker on another branch, changes nothing. `at` is when the
        mark was published.
        """
        self.received += 1
        known = self.find(project)
        if known is not None and mark.serial <= known.serial:
            return mark.serial == known.serial and mark.digest == known.digest
        self._marks[project] = _PACKED.pack(
            mark.serial,
            mark.generation,
            self.received,
            (at - _EPOCH) // timedelta(microseconds=1),
            mark.digest,
        )
        if mark.customer_keys or mark.erased:
            document = [mark.erased, customer_keys_to_json(mark.customer_keys)]
            self._marks[project] += orjson.dumps(document)
        lost = self.find_lost(project)
        if lost is not None and (mark == lost or mark.serial > lost.serial):
            del self._lost[project]
        return True

    def find(self, project: str) -> Mark | None:
        """The project's highest mark."""
        packed = self._marks.get(project)
        return None if packed is None else _unpack(packed)[0]

    def find_date(self, project: str) -> datetime | None:
        """When the project's highest mark was published."""
        packed = self._marks.get(project)
        if packed is None:
            return None
        _, _, _, micros, _ = _PACKED.unpack_from(packed)
        return _EPOCH + timedelta(microseconds=micros)

    def projects(self) -> Iterator[str]:
        """The projects that have a mark, or had one on a stream that was replaced."""
        return iter(self._marks.keys() | self._lost.keys())

    def find_lost(self, project: str) -> Mark | None:
        """The mark that a replaced stream had, if the new one does not show it yet."""
        packed = self._lost.get(project)
        return None if packed is None else _unpack(packed)[0]

    def compare(self, project: str, read: Mark, since: int) -> Finding:
        """Compare a keyring read; `since` is `received` before the read began."""
        lost = self.find_lost(project)
        if lost is not None and read != lost and read.serial <= lost.serial:
            return Finding.ROLLED_BACK
        packed = self._marks.get(project)
        if packed is None:
            return compare(read, None, began_after=True)
        known, received = _unpack(packed)
        return compare(read, known, began_after=received <= since)

    def find_state(self, project: str, read: Mark | None, since: int) -> MarkState | None:
        """Return the state of a keyring for an operator.

        None if the read must be repeated, or if there is neither a keyring nor a mark. `read` is
        None if the read found no keyring; `since` is `received` before the read began.
        """
        lost = self.find_lost(project)
        if read is None:
            if self.has_received(project, since):
                return None
            return MarkState.REMOVED if lost or self.find(project) else None
        if lost is not None:
            is_newest = read == lost or read.serial > lost.serial
            return MarkState.UNKNOWN if is_newest else MarkState.ROLLED_BACK
        return _STATES.get(self.compare(project, read, since))

    def has_received(self, project: str, since: int) -> bool:
        """Return whether the project's highest mark was received after `since`."""
        packed = self._marks.get(project)
        return packed is not None and _unpack(packed)[1] > since

    def begin_again(self) -> None:
        """Begin to read a stream that has replaced the one read before."""
        # Marks that are still lost are not below those shown since.
        self._lost = {**self._marks, **self._lost}
        self._marks.clear()


def _unpack(packed: bytes) -> tuple[Mark, int]:
    serial, generation, received, _, digest = _PACKED.unpack_from(packed)
    document = packed[_PACKED.size :]
    erased, documents = orjson.loads(document) if document else (False, ())
    customer_keys = customer_keys_from_json(documents)
    return Mark(serial, digest, generation, customer_keys, erased), received


# The first limit holds for a keyring with a record; the second if only its mark is known.
_MAX_JUMP: Final = 2**40
_LIMIT_OF_SUCCESSORS: Final = MARK_LIMIT // 2


def check_has_room(mark: Mark, record: Mark | None = None) -> None:
    """Check that a keyring may begin above its highest mark and still change often enough.

    A mark that leaves no room was signed by the holder of a leaked event key.

    `record` is the state in the keyring's record, which is authenticated; None without a record.
    It matters because an operator may have accepted an attacker's mark before: the genuine marks
    above that mark must not be mistaken for an attacker's.

    Raises:
        KeyringContradictedError: the keyring must not be put above the mark.
    """
    if record is None:
        has_room = max(mark.serial, mark.generation) < _LIMIT_OF_SUCCESSORS
    else:
        jumps = mark.serial - record.serial, mark.generation - record.generation
        has_room = max(jumps) <= _MAX_JUMP
    if not has_room:
        raise KeyringContradictedError(
            f"no worker wrote the mark at serial {mark.serial} and generation {mark.generation}: "
            "an event key has leaked; see the how-to for rotating it"
        )


class KeyringContradictedError(KeyringRolledBackError):
    """A mark contradicts the keyring: only an operator can change that (SPEC 5.5)."""


class KeyringRemovedError(KeyringContradictedError):
    """No keyring exists, but a mark says that one did.

    Attributes:
        mark: The highest mark: an enrollment that adopts begins above it.
    """

    def __init__(self, detail: str, mark: Mark) -> None:
        super().__init__(detail)
        self.mark = mark


class KeyringUnknownError(KeyringContradictedError):
    """A keyring has a serial but no mark (SPEC 5.5).

    Attributes:
        keyring: The keyring in the record.
        mark: The missing mark.
    """

    def __init__(self, detail: str, keyring: Keyring, mark: Mark) -> None:
        super().__init__(detail)
        self.keyring = keyring
        self.mark = mark


@dataclass(frozen=True, slots=True)
class StoredKeyring:
    """A keyring as one read showed it, whatever its state; `read_at` is the storage's date."""

    keyring: Keyring
    etag: str
    read_at: datetime


class KeyringErasingError(CustomerKeyUnavailableError):
    """The project waits until it is known whether it is erased (SPEC 8.8).

    Attributes:
        stored: The keyring.
    """

    def __init__(self, stored: StoredKeyring) -> None:
        super().__init__("the stores are asked whether the project is erased: try again later")
        self.stored = stored


class KeyringErasedError(ProjectErasedError):
    """The keyring is that of an erased project.

    Attributes:
        stored: The keyring.
    """

    def __init__(self, stored: StoredKeyring) -> None:
        super().__init__(ProjectErasedError.of(stored.keyring.project).detail)
        self.stored = stored


class KeyringHiddenError(StorageUnavailableError):
    """A keyring is listed, but a read does not find it."""


class Witness(Protocol):
    """The marks that a process knows, and how it publishes one."""

    @property
    def table(self) -> MarkTable:
        """The marks that were received."""

    @property
    def signed_before(self) -> Mapping[str, str]:
        """The projects whose highest mark an earlier event key signed, and that key's id."""

    @property
    def is_current(self) -> bool:
        """True if the process knows the newest marks."""

    def check_current(self, project: str) -> None:
        """Check that the process knows the newest marks.

        Raises:
            MarksUnavailableError: it does not know them, so nothing may be stored or changed.
        """

    async def become_current(self) -> None:
        """Wait a moment if the newest marks are not known; `check_current` shows the outcome."""

    async def require_current(self) -> None:
        """Check that the newest marks are known, in a gateway too.

        Raises:
            MarksUnavailableError: they are not known.
        """

    def accepts(self, finding: Finding) -> bool:
        """Return whether a keyring with this finding, other than `MARKED`, may be used as it is.

        A worker accepts no other finding.
        """

    async def catch_up(self) -> None:
        """Wait until all marks are received that were on the stream at the time of the call.

        Raises:
            MarksUnavailableError: the stream cannot be read.
        """

    async def publish(self, keyring: Keyring, mark: Mark) -> None:
        """Publish a keyring's mark; return once it was read back from the stream.

        Another mark may have come first: read the keyring again.

        Raises:
            MarksUnavailableError: the broker is away, or the mark was not read back in time.
        """

    def when_marked(self, forget: Callable[[str, Mark], None]) -> None:
        """Call `forget` with each project's new highest mark."""


class MarkWatch:
    """Compares all keyrings with their marks, one scan after another.

    At the end of each scan it calls `report` with the number of keyrings that no worker may use.
    """

    def __init__(self, witness: Witness, report: Callable[[int], None]) -> None:
        self._witness = witness
        self._report = report
        self._since = 0
        self._before: dict[str, MarkState] = {}
        self._found: dict[str, MarkState] = {}
        self._serials: dict[str, int] = {}

    def begin(self) -> None:
        """Begin a scan. Pass it only keyrings that are read, or listed, after this call."""
        self._since = self._witness.table.received
        self._found, self._serials = {}, {}

    def is_settled(self, project: str, mark: Mark) -> bool:
        """Compare an unchanged keyring; False if it must be read, to be marked or compared."""
        state = self._witness.table.find_state(project, mark, self._since)
        self._note(project, state, mark)
        return state not in (None, MarkState.UNMARKED)

    async def compare(self, keyring: Keyring, mark: Mark) -> None:
        """Compare a keyring that was just read, and publish its mark if it lacks one."""
        project = keyring.project
        state = self._witness.table.find_state(project, mark, self._since)
        self._note(project, state, mark)
        if state is MarkState.UNMARKED:
            try:
                self._witness.check_current(project)
                await self._witness.publish(keyring, mark)
            except MarksUnavailableError as exc:
                # It stays unmarked, so the next scan reads it again.
                _log.warning("keyring not marked", project=project, detail=exc.detail)

    def end(self, listed: Collection[str]) -> None:
        """End a scan of all keyrings; `listed` are the projects that have a keyring."""
        table = self._witness.table
        for project in table.projects():
            if project not in listed:
                self._note(project, table.find_state(project, None, self._since), None)
        new = [project for project, state in self._found.items() if self._is_new(project, state)]
        for project in sorted(new)[:_MAX_LOGGED]:
            known = table.find(project) or table.find_lost(project)
            _log.error(
                "keyring rolled back",
                project=project,
                state=self._found[project].value,
                serial=self._serials.get(project),
                mark_serial=None if known is None else known.serial,
            )
        if len(new) > _MAX_LOGGED:
            _log.error("more keyrings rolled back", projects=len(new) - _MAX_LOGGED)
        self._before = self._found
        self._report(len(self._found))

    def _is_new(self, project: str, state: MarkState) -> bool:
        return self._before.get(project) is not state

    def _note(self, project: str, state: MarkState | None, mark: Mark | None) -> None:
        if state is not None and state.is_contradicted:
            self._found[project] = state
            if mark is not None:
                self._serials[project] = mark.serial
