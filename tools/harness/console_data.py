"""A publisher that answers a console's queries with made-up rows: for tests of pages and previews.

Nothing is signed, and no server runs. All of it follows from the numbers that are given, so that
two of them are the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from keyturn.identifiers import format_time
from keyturn.messages import (
    AttentionLink,
    AttentionStatus,
    AuditStatus,
    CodeCount,
    Counts,
    CustomerKeyStatus,
    DeadLetterStatus,
    DeadQueueStatus,
    EvidenceStatus,
    FailureStatus,
    MasterKeyStatus,
    ObjectGroupStatus,
    Progress,
    ProjectStatus,
    QueueReport,
    QueueStatus,
    StatusReported,
    SweepStatus,
    TotalsStatus,
    WorkerStatus,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from keyturn.messages import Event, StatusFilter

PUBLISHER: Final = "console"
HOSTILE: Final = "<script>window.pwned=1</script>\"'>\u202egnp.exe\x00 \u200b"
"""Text that must stay text."""
HOSTILE_KEY: Final = HOSTILE.replace("\x00", "")
"""The same as an object key, which has no control characters."""
LONG_PROJECT: Final = "a-project-with-the-longest-name-that-the-specification-allows-0"
WAITING: Final = "globex"
"""A project that waits for its customer key."""
ERASED: Final = "tyrell"
UPLOAD_DEAD: Final = "keyturn.upload.dead"
_NAMES: Final = ("acme", "globex", "initech", "umbrella", "hooli", "stark", "wayne", "tyrell")
_ARN: Final = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
_FIELDS: Final = {
    "projects": "projects",
    "sweeps": "sweeps",
    "sweep": "sweeps",
    "failures": "failures",
    "evidence": "evidence_files",
    "master_keys": "master_keys",
    "objects": "objects",
    "workers": "workers",
    "queues": "queues",
    "totals": "totals",
    "attention": "attention",
    "audit": "audit_records",
    "dead_letters": "dead_letters",
}


def made_up_id(name: str) -> str:
    """An id that follows from a name."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def digest(name: str) -> str:
    """A digest that follows from a name."""
    return hashlib.sha256(name.encode()).hexdigest()


@dataclass
class MadeUp:
    """A publisher whose control workers answer with these rows, by view.

    Attributes:
        rows: By view, the rows of the whole deployment.
        more: By view, further fields of its reports.
        age: How long ago the reading of each report began.
        error: What the wait for an answer raises, once it is set.
        publish_errors: What the next publications raise, one each.
        asked: What was asked for.
        published: What else was published: its kind, and its arguments.
        answers: By request id, the event that answers what was published.
    """

    rows: dict[str, Sequence[Any]] = field(default_factory=dict)
    more: dict[str, dict[str, Any]] = field(default_factory=dict)
    age: timedelta = timedelta(seconds=2)
    error: Exception | None = None
    publish_errors: list[Exception] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    published: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    answers: dict[str, Event] = field(default_factory=dict)
    answered: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def answer(self, request_id: str, event: Event) -> None:
        """Answer what was, or will be, published under this id."""
        async with self.answered:
            self.answers[request_id] = event
            self.answered.notify_all()

    async def connect(self) -> None:
        """There is always a broker."""

    async def status(
        self,
        view: str,
        project: str = "*",
        *,
        filter: StatusFilter | None = None,  # noqa: A002 - as the message names it
        page: int | None = None,
        limit: int = 200,
        **more: Any,
    ) -> str:
        """Note the request; its id is its number."""
        text = "" if filter is None else filter.text or ""
        self.asked.append(
            {"view": view, "project": project, "filter": filter, "text": text}
            | {"page": page or 1, "limit": limit, **more}
        )
        return str(len(self.asked) - 1)

    async def wait(self, request_id: str, **_more: Any) -> Event:
        """The report, or what answers a request."""
        if not request_id.isdigit():
            async with self.answered:
                await self.answered.wait_for(lambda: request_id in self.answers)
            return self.answers[request_id]
        if self.error is not None:
            raise self.error
        return self.report(self.asked[int(request_id)])

    def report(self, asked: dict[str, Any]) -> StatusReported:
        """The page that answers a request."""
        view, name = asked["view"], asked["project"]
        all_rows = [
            row
            for row in self.rows.get(view, ())
            if name == "*" or getattr(row, "project", name) == name
        ]
        sweep_id = asked.get("sweep_id")
        if view == "sweep":
            all_rows = [row for row in all_rows if row.sweep_id == sweep_id]
        text = asked["text"].lower()
        found = [row for row in all_rows if text in _text(row)] if text else all_rows
        start = (asked["page"] - 1) * asked["limit"]
        rows: dict[str, Any] = {_FIELDS[view]: tuple(found[start : start + asked["limit"]])}
        return StatusReported(
            at=format_time(datetime.now(UTC) - self.age),
            publisher=PUBLISHER,
            request_id=made_up_id(repr(asked)),
            project=name,
            view=view,
            sweep_id=sweep_id,
            page=asked["page"],
            total=len(found),
            of_all=len(all_rows),
            **{"is_complete": True} | rows | self.more.get(view, {}),
        )

    async def progress(self, request_id: str, **_more: Any) -> AsyncGenerator[Event, None]:
        """The event that answers a sweep."""
        yield await self.wait(request_id)

    async def _publish(self, kind: str, request_id: str | None, **arguments: Any) -> str:
        if self.publish_errors:
            raise self.publish_errors.pop(0)
        made = request_id or made_up_id(repr(arguments))
        self.published.append((kind, {"request_id": made, **arguments}))
        return made

    async def sweep(self, project: str, *, sweep_id: str | None = None, **more: Any) -> str:
        """Note it."""
        return await self._publish("sweep", sweep_id, project=project, **more)

    async def enroll(self, project: str, *, request_id: str | None = None, **more: Any) -> str:
        """Note it."""
        return await self._publish("enrollment", request_id, project=project, **more)

    async def rotate(self, project: str, *, rotation_id: str | None = None, **more: Any) -> str:
        """Note it."""
        return await self._publish("rotation", rotation_id, project=project, **more)

    async def delete(
        self, project: str, key: str, *, request_id: str | None = None, **more: Any
    ) -> str:
        """Note it."""
        return await self._publish("delete", request_id, project=project, key=key, **more)

    async def move_dead_letters(
        self, action: str, queue: str, *, request_id: str | None = None, **more: Any
    ) -> str:
        """Note it."""
        return await self._publish("dead_letters", request_id, action=action, queue=queue, **more)


def _text(row: Any) -> str:
    return " ".join(str(value) for value in row.model_dump().values() if value).lower()


@cache
def _history(projects: int) -> dict[str, tuple[Any, ...]]:
    """The rows for which a minute more or less makes no difference, made once per process."""
    maker = _Maker(datetime.now(UTC))
    by_number = map(maker.project, range(projects))
    return {
        "projects": tuple(sorted(by_number, key=lambda row: row.project)),
        "audit": tuple(map(maker.record, range(260))),
        "dead_letters": tuple(map(maker.letter, range(130))),
    }


def deployment(projects: int = 240) -> MadeUp:
    """One that has lived a little."""
    now = datetime.now(UTC)
    maker = _Maker(now)
    under_way = [maker.running(), maker.proving(), maker.waiting()]
    sweeps = [*under_way, maker.erasure(), *(maker.ended(number) for number in range(40))]
    return MadeUp(
        rows={
            **_history(projects),
            "sweeps": sweeps,
            "sweep": sweeps,
            "failures": [
                FailureStatus(project="hooli", key=f"{HOSTILE_KEY} {number}", code="bad_seal")
                for number in range(7)
            ],
            "evidence": list(maker.evidence("acme")),
            "master_keys": [
                MasterKeyStatus(
                    master_key="m2", provider="pkcs11", active=True, projects=projects - 20
                ),
                MasterKeyStatus(master_key="m1", provider="local", active=False, projects=20),
            ],
            "objects": [
                ObjectGroupStatus(kind="encrypted", count=4000, master_key="m2"),
                ObjectGroupStatus(kind="keyring", count=20, master_key="m1"),
                ObjectGroupStatus(kind="erased", count=12),
                ObjectGroupStatus(kind="unreadable", count=2, code="no_usable_wrap"),
            ],
            "workers": [maker.worker(number) for number in range(5)],
            "queues": maker.queues(),
            "totals": [
                TotalsStatus(
                    at=maker.ago(minutes=ago), uploads=40 + ago % 17, uploads_refused=ago % 5
                )
                for ago in range(60, -1, -1)
            ],
            "attention": maker.attention(),
        },
        more={
            "failures": {"codes": (CodeCount(code="bad_seal", count=7),)},
            "dead_letters": {
                "codes": (
                    CodeCount(queue=UPLOAD_DEAD, code="bad_seal", count=92),
                    CodeCount(queue=UPLOAD_DEAD, code="request_expired", count=38),
                ),
                "dead_queues": (DeadQueueStatus(queue=UPLOAD_DEAD, depth=2130, read=130),),
            },
            "audit": {"findings": ("record 118 of worker control is missing",)},
        },
    )


class _Maker:
    def __init__(self, now: datetime) -> None:
        self.now = now

    def ago(self, **age: float) -> str:
        return format_time(self.now - timedelta(**age))

    def project(self, number: int) -> ProjectStatus:
        name = _NAMES[number % len(_NAMES)]
        name = LONG_PROJECT if number == 11 else name if number < 8 else f"{name}-{number:05}"
        if number == 5:
            detail = f"master key {HOSTILE_KEY}"
            return ProjectStatus(project=name, code="unknown_master_key", detail=detail)
        generation = 1 + number % 5
        enrolled, rotated = self.ago(days=900 - number % 400), self.ago(days=number * 37 % 380)
        return ProjectStatus(
            project=name,
            generation=generation,
            kek_id=digest(f"kek {number}")[:32],
            master_key="m1" if number % 9 == 4 else "m2",
            plaintext=number % 20 == 7,
            earlier_keks=number % 3 if number % 4 == 0 else 0,
            enrolled_at=enrolled,
            rotated_at=rotated if generation > 1 else None,
            key_since=rotated if generation > 1 else enrolled,
            evidence=digest(f"evidence {name} 3") if generation > 1 else None,
            mark="rolled_back" if number == 6 else "current",
            last_proof_at=self.ago(days=number % 90) if number % 7 else None,
            last_end_clean=number % 11 != 3,
            objects=number * 977 if number % 7 else None,
            objects_at=self.ago(days=number % 90) if number % 7 else None,
            running_sweeps=(made_up_id("running"),) if name == "umbrella" else (),
            customer_key=self.customer_key(name),
            erased_at=self.ago(days=3) if name == ERASED else None,
        )

    def customer_key(self, project: str) -> CustomerKeyStatus | None:
        if project == WAITING:
            code, since = "customer_key_refused", self.ago(hours=5)
            return CustomerKeyStatus(store="customers-eu", key=_ARN, code=code, since=since)
        has_key = project in (ERASED, "acme")
        return CustomerKeyStatus(store="vault", key=f"keyturn-{project}") if has_key else None

    def running(self) -> SweepStatus:
        return SweepStatus(
            sweep_id=made_up_id("running"),
            project="umbrella",
            kind="rotation",
            status="running",
            counts=Counts(objects=29_280, rewrapped=26_000, current=29_000),
            requested_at=self.ago(minutes=11),
            started_at=self.ago(minutes=10),
            publisher="api",
            generation=3,
            expected_objects=48_000,
            rate_per_s=48.0,
            left_s=390.0,
            pages=96,
            pages_open=40,
            progress=Progress(
                phase="rewrapping", done=29_280, total=48_000, first_rewrap_at=self.ago(minutes=9)
            ),
        )

    def waiting(self) -> SweepStatus:
        return SweepStatus(
            sweep_id=made_up_id("waiting"),
            project=WAITING,
            kind="sweep",
            status="running",
            counts=Counts(objects=40, rewrapped=40, current=40),
            requested_at=self.ago(hours=6),
            started_at=self.ago(hours=6),
            stepped_at=self.ago(seconds=20),
            publisher="api",
            left_s=60.0,
            progress=Progress(
                phase="rewrapping", done=40, total=90, waits_for_key="customer_key_refused"
            ),
        )

    def erasure(self) -> SweepStatus:
        return SweepStatus(
            sweep_id=made_up_id("erasure"),
            project=ERASED,
            kind="erasure",
            status="done",
            clean=True,
            counts=Counts(),
            requested_at=self.ago(days=3, seconds=9),
            started_at=self.ago(days=3, seconds=8),
            ended_at=self.ago(days=3),
            publisher="ops",
            evidence=digest(f"evidence {ERASED} 3"),
            progress=Progress(phase="ended"),
        )

    def proving(self) -> SweepStatus:
        return SweepStatus(
            sweep_id=made_up_id("proving"),
            project="wayne",
            kind="sweep",
            status="running",
            counts=Counts(objects=91, rewrapped=90, current=46),
            requested_at=self.ago(seconds=50),
            started_at=self.ago(seconds=45),
            publisher=PUBLISHER,
            actor=f"ada {HOSTILE_KEY}",
            progress=Progress(
                phase="proving",
                done=46,
                total=91,
                first_rewrap_at=self.ago(seconds=40),
                all_rewrapped_at=self.ago(seconds=18),
                proof_possible_at=self.ago(seconds=-25),
            ),
        )

    def ended(self, number: int) -> SweepStatus:
        failed = 7 if number % 11 == 3 else 0
        name = "hooli" if failed else _NAMES[number % len(_NAMES)]
        began_s = 3600.0 + number * 4000
        return SweepStatus(
            sweep_id=made_up_id(f"sweep {number}"),
            project=name,
            kind="rotation" if number % 3 == 1 else "sweep",
            status="failed" if number == 5 else "done",
            code="lease_mismatch" if number == 5 else None,
            detail="LEASE_S is 60 here and 120 in the record" if number == 5 else None,
            clean=not failed and number != 5,
            counts=Counts(objects=500 + number, rewrapped=500, current=500 - failed, failed=failed),
            requested_at=self.ago(seconds=began_s + 5),
            started_at=self.ago(seconds=began_s),
            ended_at=self.ago(seconds=began_s - 200),
            publisher="ops",
            actor="grace",
            evidence=digest(f"evidence {name} 3") if not failed and number != 5 else None,
            progress=Progress(
                phase="ended",
                first_rewrap_at=self.ago(seconds=began_s - 10),
                all_rewrapped_at=self.ago(seconds=began_s - 100),
                proof_possible_at=self.ago(seconds=began_s - 150),
            ),
        )

    def evidence(self, project: str) -> list[EvidenceStatus]:
        return [
            EvidenceStatus(
                project=project,
                generation=generation,
                sweep_id=made_up_id(f"evidence {generation}"),
                at=self.ago(days=400 - generation * 90),
                digest=digest(f"evidence {project} {generation}"),
                envelope=None if generation == 4 else f'{{"payload":"{generation}"}}',
                code="bad_signature" if generation == 4 else None,
            )
            for generation in range(2, 5)
        ]

    def worker(self, number: int) -> WorkerStatus:
        is_old = number == 4
        roles = (("upload",), ("upload",), ("control",), ("sweep",), ("upload", "control"))[number]
        return WorkerStatus(
            worker_id=made_up_id(f"worker {number}"),
            roles=roles,
            host=HOSTILE_KEY if is_old else f"worker-{number}.internal",
            version="0.8.2" if is_old else "0.9.0",
            started_at=self.ago(hours=30 + number),
            interval_s=15,
            is_stopping=False,
            lease_s=120 if is_old else 60,
            is_clock_known=number != 3,
            active_master_key="m2",
            master_keys=("m1", "m2"),
            event_keys=("8f3c2a71",),
            intake_keys=("main",),
            queues=tuple(
                QueueReport(
                    queue=f"keyturn.{role}", served=90_000, refused=40, retried=3, in_flight=number
                )
                for role in roles
            ),
            as_of=self.ago(seconds=300 if number == 1 else 3),
            is_missing=number == 1,
        )

    def queues(self) -> list[QueueStatus]:
        depths = (("upload", 40, 8, 131), ("control", 0, 1, 2), ("sweep", 300, 2, 0))
        return [
            QueueStatus(
                queue=f"keyturn.{name}",
                depth=depth,
                consumers=consumers,
                retrying=1,
                dead=dead,
                served_per_s=21.5,
                refused_per_s=0.02,
                oldest_s=2.5,
            )
            for name, depth, consumers, dead in (*depths, ("plan", 1, 0, 0))
        ] + [QueueStatus(queue="keyturn.notifications", depth=0, consumers=0)]

    def attention(self) -> list[AttentionStatus]:
        return [
            AttentionStatus(
                rule="keyring_unreadable",
                severity="act",
                title=f"The keyring of stark cannot be read {HOSTILE_KEY}",
                detail="unknown_master_key: no worker holds it.",
                link=AttentionLink(page="project", project="stark"),
                remedy="Give the workers the master key.",
                command="keyturn status stark",
                as_of=self.ago(seconds=40),
            ),
            AttentionStatus(
                rule="customer_keys_missing",
                severity="act",
                title="1 project waits for its customer key: customer_key_refused",
                detail=f"{WAITING} (store customers-eu): the store gives no secret.",
                link=AttentionLink(page="project", project=WAITING),
                remedy="Ask the customer whether this was intended.",
                as_of=self.ago(seconds=40),
            ),
            AttentionStatus(
                rule="dead_letters",
                severity="soon",
                title="92 dead letters with bad_seal",
                detail="In keyturn.upload.dead.",
                link=AttentionLink(page="dead_letters", filter={"queue": UPLOAD_DEAD}),
                remedy="Fix the publisher, then discard them.",
            ),
            AttentionStatus(
                rule="sweep_stuck",
                severity="info",
                title="A sweep made no progress for 15 minutes",
                detail="wayne.",
                link=AttentionLink(page="sweep", project="wayne", sweep_id=made_up_id("proving")),
                remedy="See the workers.",
            ),
        ]

    def record(self, number: int) -> AuditStatus:
        is_open = number % 13 == 5
        outcome = "not_permitted" if number % 9 == 4 else "started" if is_open else "done"
        return AuditStatus(
            audit_id=made_up_id(f"record {number}"),
            at=self.ago(minutes=number * 4),
            process=made_up_id("process"),
            counter=260 - number,
            role="download" if is_open else "worker control",
            host="worker-2.internal",
            action="object.opened_as_operator"
            if is_open
            else ("request.refused" if outcome != "done" else "request.served"),
            actor=("ada", "grace", f"api {HOSTILE_KEY}")[number % 3],
            publisher=None if is_open else "console",
            request_type=None if is_open else "sweep.requested",
            request_id=None if is_open else made_up_id(f"sweep {number % 40}"),
            project=_NAMES[number % len(_NAMES)],
            object_key=HOSTILE_KEY if is_open else None,
            outcome=outcome,
            reason="ticket 4711: the customer asked for it" if is_open else None,
            offset=260 - number,
            findings=("record 118 of this process is missing",) if number == 3 else (),
        )

    def letter(self, number: int) -> DeadLetterStatus:
        is_expired = number >= 92
        return DeadLetterStatus(
            queue=UPLOAD_DEAD,
            letter=digest(f"letter {number}"),
            message_id=made_up_id(f"letter {number}") if number else f"<{HOSTILE_KEY}>",
            type="upload.requested",
            project=_NAMES[number % len(_NAMES)],
            object_key=f"{HOSTILE_KEY}/{number}" if number < 2 else f"reports/{number}.pdf",
            code="request_expired" if is_expired else "bad_seal",
            detail=HOSTILE_KEY if number == 1 else "the body does not open",
            publisher="api",
            requested_at=self.ago(hours=30, seconds=-number),
            dead_at=self.ago(hours=29, seconds=-number),
            size_bytes=4096 + number,
            work_queue="keyturn.upload",
            obstacle="expired" if is_expired else None,
            text='{\n  "type": "upload.requested",\n  "sealed": "(4,096 bytes)"\n}',
        )
