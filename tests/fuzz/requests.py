"""Mutated requests through a worker's own consumers (SPEC 6.3, 12).

Each delivery must end in one of three ways: served, put off with a transient code, or in
the dead letters with a code, its body and headers as they were sent. Anything else is a
finding: another exception, a delivery given back, an error in the log, a secret shown.
"""

from __future__ import annotations

import asyncio
import random
import sys
from typing import TYPE_CHECKING, Any, Final

import structlog
from aio_pika import IncomingMessage

from keyturn.crypto import VerifyKey
from keyturn.errors import all_errors
from keyturn.messages import parse_event, parse_request
from keyturn.topology import ATTEMPT_HEADER, CODE_HEADER, DETAIL_HEADER, SIGNATURE_HEADER
from keyturn_workers.process.runtime import reduce_garbage_collection
from tests.fuzz import valid_messages
from tests.fuzz.cases import Case, Cases
from tests.fuzz.dead_letters import check_copy, dead_queue_of
from tests.fuzz.harness import as_text
from tests.fuzz.offline_worker import Channel, FrameError, Published, Worker, delivered
from tests.fuzz.watch import MAX_CPU_S, Clock, Report, Watch
from tools.harness.canaries import Canaries

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_FRESH: Final = 60
_ANEW_EVERY: Final = 1000
_REDELIVERED_EVERY: Final = 11
_VERIFIED_EVERY: Final = 20
# A worker takes the first delivery of a channel from aio-pika, and the others by itself.
_WARM_SHARE: Final = 0.3
_CODES: Final = frozenset(all_errors())
_FORM: Final = ("bad_signature", "malformed_request")
# A sweep's id that an earlier mutation of the same request has taken.
_ANOTHER: Final = "this id belongs to a sweep with other options"


class _Logged(list[str]):
    """Every log line since it was last cleared, as text."""

    def __call__(self, logger: Any, name: str, line: MutableMapping[str, Any]) -> Any:
        del logger
        failed = repr(sys.exception()) if line.get("exc_info") else ""
        self.append(f"{name} {dict(line)!r} {failed}".rstrip())
        raise structlog.DropEvent


class _ViolationError(Exception):
    """What no delivery may do."""


class Fuzzer:
    """Takes deliveries one by one, and judges what came of each."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)  # noqa: S311  # no secret
        deployment = valid_messages.deployment()
        pool = valid_messages.pool(deployment, rng, fresh=_FRESH)
        canaries = Canaries.of(deployment, valid_messages.PROJECT, valid_messages.OTHER_PROJECT)
        canaries.secrets |= pool.secrets
        self.watch = Watch("requests", seed, canaries.secrets.values())
        self._cases = Cases(deployment, pool, rng)
        self._worker = Worker(deployment, pool.staged)
        self._event_key = VerifyKey.from_bytes(deployment.event_key.public_bytes)
        self._deployment = deployment
        self._logged = _Logged()
        structlog.configure(processors=[self._logged], cache_logger_on_first_use=False)

    async def run(self, count: int) -> Report:
        """`count` deliveries; ends early if enough was found."""
        async with self._worker.running():
            return await self._run(count)

    async def _run(self, count: int) -> Report:
        for number in range(count):
            if number % _ANEW_EVERY == 0:
                self.begin()
            if number == int(count * _WARM_SHARE):
                self.watch.warmed_up()
            case = self._cases.draw(f"m{number}")
            await self.one(case, redelivered=number % _REDELIVERED_EVERY == 0)
            if self.watch.over:
                break
        return self.watch.finish()

    async def replay(self, case: Case) -> None:
        """One delivery to a new worker."""
        self.begin()
        async with self._worker.running():
            await self.one(case)

    def begin(self) -> None:
        """A new worker, on a bucket as new."""
        self._worker.begin()

    async def one(self, case: Case, *, redelivered: bool = False) -> None:
        """One delivery, judged; slow only if it is slow again."""
        outcome, cpu_s = await self._taken(case, redelivered=redelivered)
        if cpu_s > MAX_CPU_S:
            cpu_s = min(cpu_s, (await self._taken(case, redelivered=True))[1])
        self.watch.outcome(outcome, cpu_s)
        if cpu_s > MAX_CPU_S:
            self.watch.found(f"{cpu_s * 1000:.0f} ms of CPU for one delivery", case.dump())

    async def _taken(self, case: Case, *, redelivered: bool) -> tuple[str, float]:
        self._logged.clear()
        clock, channel = Clock(), Channel()
        try:
            message = delivered(
                case.header, case.body, case.routing_key, channel, redelivered=redelivered
            )
            sent = IncomingMessage(message)
            await self._worker.take(case.queue, sent)
            cpu_s = clock.passed_s()
            return self._judged(case, sent, channel), cpu_s
        except Exception as exc:  # noqa: BLE001  # whatever it is, it is the finding
            if not case.sound and isinstance(exc, FrameError):
                return "no frame", clock.passed_s()
            problem = str(exc) if isinstance(exc, _ViolationError) else f"raised {exc!r}"
            self.watch.found(problem[:500], case.dump())
            return "finding", clock.passed_s()

    def _judged(self, case: Case, sent: IncomingMessage, channel: Channel) -> str:
        published = list(self._worker.broker.published)
        lines = "\n".join(self._logged)
        if (channel.acks, channel.nacks) != (1, 0) or "error {" in lines:
            raise _ViolationError(f"not finished: {lines}")
        letters = [one for one in published if one.queue.startswith("keyturn.")]
        events = [one for one in published if one not in letters]
        self.watch.check_text(lines + "".join(map(self._check_event, events)), case.dump)
        code = self._code(case, sent, letters)
        if case.as_made and code in _FORM and _ANOTHER not in lines:
            raise _ViolationError(f"a good request was refused: {lines}")
        if code is not None:
            return code
        request = parse_request(case.body)
        again = parse_request(as_text(request))
        if again != request:
            raise _ViolationError("a request that does not come back as it was read")
        return f"served {request.type}"

    def _check_event(self, event: Published) -> str:
        """The text of an event, which must be one that a reader believes."""
        if self.watch.report.inputs % _VERIFIED_EVERY == 0:
            signature = str(event.read().headers[SIGNATURE_HEADER])
            self._event_key.verify_event(self._deployment.name, event.body, signature)
        parse_event(event.body)
        return event.body.decode()

    def _code(self, case: Case, sent: IncomingMessage, letters: list[Published]) -> str | None:
        """The code of the dead letter, or of the put-off; None where it was served."""
        # Of some refusals the letter has another body (SPEC 6.9).
        copies = [one for one in letters if one.body == case.body or one.queue.endswith(".dead")]
        if not copies:
            return None
        (letter,) = copies
        copy = letter.read()
        for problem in check_copy(sent, copy):
            raise _ViolationError(problem)
        if not letter.queue.endswith(".dead"):
            return f"put off {str(copy.headers[ATTEMPT_HEADER]).partition(':')[0]}"
        code = str(copy.headers[CODE_HEADER])
        if code not in _CODES or letter.queue != dead_queue_of(case.queue, code):
            raise _ViolationError(f"dead with {code} in {letter.queue}")
        self.watch.check_text(str(copy.headers.get(DETAIL_HEADER)), case.dump)
        return code


def run(seed: int, count: int) -> Report:
    """`count` mutated requests from this seed."""
    reduce_garbage_collection()
    return asyncio.run(Fuzzer(seed).run(count))


async def replay(case: Case) -> Report:
    """One delivery again, by a new worker."""
    fuzzer = Fuzzer(0)
    await fuzzer.replay(case)
    return fuzzer.watch.finish()
