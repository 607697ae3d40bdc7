"""A reader or a parser as a function of bytes, for any engine that makes bytes.

A harness returns the result for its input as a word (`corrupt_object`, `whole`). Whatever it
raises is a finding: an exception that the product should not have let out, or
`OracleError`, where it gave out something that is not right.
"""

from __future__ import annotations

import json
import random
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

from tests.fuzz import odd_values
from tests.fuzz.watch import MAX_CPU_S, Clock, Report, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from keyturn.errors import CodedError

_WARM_SHARE: Final = 0.3
_MAX_BYTES: Final = 64 * 1024
_HEAD_SHARE: Final = 0.4
_HEAD_BYTES: Final = 512


class OracleError(AssertionError):
    """A reader gave out what is not right, or changed its mind."""


@dataclass(frozen=True)
class Harness:
    """`seeds` are inputs that get deep; `words` help an engine to make up more."""

    name: str
    run: Callable[[bytes], str]
    seeds: Callable[[], Sequence[bytes]]
    words: tuple[str, ...] = ()


def check(right: object, what: str) -> None:
    """Raise where this does not hold."""
    if not right:
        raise OracleError(what)


@contextmanager
def same_each_time() -> Iterator[None]:
    """Salts and nonces that are drawn in here are the same in every run.

    A corpus is kept from run to run: what one run sealed, the next must know as its own.
    """
    with patch("os.urandom", bytes):
        yield


def as_text(message: Any) -> bytes:
    """A message as JSON that any reader of it could write: text, without escapes."""
    return json.dumps(message.model_dump(mode="json"), ensure_ascii=False).encode()


def code_of(error: CodedError, *allowed: str) -> str:
    """The error's code, which must be one of these."""
    check(error.code in allowed, f"{error.code} was not to be raised here")
    return error.code


def at_random(harness: Harness, seed: int, count: int) -> Report:
    """`count` inputs, made at random from its seeds."""
    rng = random.Random(seed)  # noqa: S311  # no secret
    watch = Watch(harness.name, seed)
    seeds = list(harness.seeds())
    for number in range(count):
        if number == int(count * _WARM_SHARE):
            watch.warmed_up()
        data = seeds[number] if number < len(seeds) else mutated(rng, harness, seeds)
        one(watch, harness, data)
        if watch.over:
            break
    return watch.finish()


def mutated(rng: random.Random, harness: Harness, seeds: Sequence[bytes]) -> bytes:
    """A seed that was damaged, with another seed or a word put into it now and then."""
    data = rng.choice(seeds)
    if rng.random() < _HEAD_SHARE:
        # The start, which is short, decides how the rest is read.
        return (odd_values.raw(rng, data[:_HEAD_BYTES]) + data[_HEAD_BYTES:])[:_MAX_BYTES]
    match rng.randrange(6):
        case 0:
            other, at = rng.choice(seeds), rng.randrange(len(data) + 1)
            data = data[:at] + other[rng.randrange(len(other) + 1) :]
        case 1 if harness.words:
            at = rng.randrange(len(data) + 1)
            data = data[:at] + rng.choice(harness.words).encode() + data[at + rng.randrange(9) :]
        case _:
            data = odd_values.raw(rng, data)
    return data[:_MAX_BYTES]


def one(watch: Watch, harness: Harness, data: bytes) -> None:
    """One input, judged; slow only where it is slow again."""
    clock = Clock()
    try:
        outcome = harness.run(data)
    except Exception as exc:  # noqa: BLE001  # whatever it is, it is the finding
        watch.found(f"raised {exc!r}"[:300], data)
        return
    cpu_s = clock.passed_s()
    if cpu_s > MAX_CPU_S:
        clock = Clock()
        harness.run(data)
        cpu_s = clock.passed_s()
    watch.outcome(outcome, cpu_s)
    if cpu_s > MAX_CPU_S:
        watch.found(f"{cpu_s * 1000:.0f} ms of CPU for {len(data)} bytes", data)
