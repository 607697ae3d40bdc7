"""The load of a run: uploads of many kinds and their plaintexts, from only the seed. Pure.

Most uploads are plain. Some are published twice, some compete with a second writer of their key,
and some must be rejected, each for one reason of SPEC 12. A few keys are deleted and written again.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tools.harness.canaries import MARKER

if TYPE_CHECKING:
    from collections.abc import Iterable

STORED = "stored"
PROJECTS = ("amber", "birch", "cedar")
LATE_PROJECT = "dune"
"""Enrolled in the middle of the run, during the rotation of the master key."""
UNKNOWN_PROJECT = "unknown"

_KIB = 1024
_EDGES = (0, 1, 16383, 16384, 16385, 32768, 65536)
_STAGED_EVERY = 40
_PAIRS_EVERY = 30
_TWICE_EVERY = 25
_FLAWED_EVERY = 20
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
        changed[new.number] = replace(new, project=old.project, key=old.key, may_end=refusals)
    return Load(tuple(changed.get(upload.number, upload) for upload in load.order))


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
