"""One run: starts everything, sends the load, injects faults on schedule, collects evidence."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyturn.crypto import SigningKey, new_api_key
from tools.chaos import console_reports
from tools.chaos.attackers import Attackers, publishers_with_rival
from tools.chaos.broker import Broker
from tools.chaos.bucket_checks import leftovers
from tools.chaos.evidence import Evidence, OnBroker, on_broker
from tools.chaos.fault_proxy import FaultProxy, run_fault_proxy
from tools.chaos.gateway_readers import GatewayReaders
from tools.chaos.load import FLAWS_WITHOUT_EVENT, LATE_PROJECT, PROJECTS
from tools.chaos.load_sender import (
    PUBLISH_TIMEOUT_S,
    EventLog,
    LoadSender,
    RecordingPublisher,
    publisher_settings,
    staging_settings,
)
from tools.chaos.operator import Operator, new_masters
from tools.chaos.schedule import CONSOLE, GATEWAY, PUBLISHER, RIVAL
from tools.chaos.supervisor import VIEWER, Supervisor, run_supervisor
from tools.chaos.thief import Thief
from tools.harness.console import ConsoleDeployment
from tools.harness.sweep_scenario import master_keys_setting, wait_until_drained
from tools.harness.tenants import Tenant
from tools.harness.wire import open_wire
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from pathlib import Path
    from typing import Any

    from tools.chaos.schedule import Action, Plan
    from tools.chaos.thief import Theft
    from tools.servers import RabbitMQ, S3Server

_EMPTY_S = 120


@dataclass
class Run:
    """A run in progress."""

    plan: Plan
    deployment: ConsoleDeployment
    folder: Path
    broker: Broker
    storage: FaultProxy
    supervisor: Supervisor
    print: Callable[[str], None]
    tenants: dict[str, Tenant] = field(default_factory=dict)
    masters: dict[str, bytes] = field(default_factory=dict)
    unsettled: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    _requests: list[asyncio.Task[None]] = field(default_factory=list)
    _broker_outage: asyncio.Task[None] | None = None
    _began: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start, with one decimal."""
        return round(time.monotonic() - self._began, 1)

    def say(self, what: str) -> None:
        """Print the progress with the elapsed time."""
        self.print(f"{self.elapsed_s:>6} s  {what}")

    async def execute(self, timeout_s: float) -> Evidence:
        """The complete run; what did not complete in time is named in the evidence."""
        self.masters = new_masters(self.deployment.master_key)
        every = (*PROJECTS, LATE_PROJECT)
        self.tenants = {
            name: Tenant(self.deployment, name, [new_api_key()], dict(self.masters))
            for name in every
        }
        self.say("starting the processes")
        rival_key = SigningKey.from_seed(os.urandom(32))
        publishers = publishers_with_rival(self.deployment, rival_key)
        await self.supervisor.start_all(
            self.storage.url, master_keys_setting(self.masters), publishers
        )
        await asyncio.to_thread(self.broker.wait_until_it_survives)
        broker_proxy = self.supervisor.url_of(self.supervisor.processes[PUBLISHER].broker_proxy)
        async with RecordingPublisher.open(
            publisher_settings(self.deployment, broker_proxy),
            s3=staging_settings(self.deployment, self.storage.url),
            publish_timeout_s=PUBLISH_TIMEOUT_S,
        ) as publisher:
            event_log = EventLog()
            late = {LATE_PROJECT: asyncio.Event()}
            sender = LoadSender(self.plan, self.deployment, publisher, event_log, late)
            rival = Tenant(self.deployment, RIVAL, [new_api_key()], dict(self.masters))
            everybody = {**self.tenants, RIVAL: rival}
            operator = Operator(self.supervisor, sender, event_log, everybody)
            attackers = Attackers(
                self.deployment,
                rival_key,
                self.plan.seed,
                publisher,
                event_log,
                {upload.upload_id: upload for upload in self.plan.load.uploads},
            )
            url = f"http://127.0.0.1:{self.supervisor.processes[GATEWAY].port}"
            readers = GatewayReaders(operator, url, self.plan.seed, denied=self.storage.denied)
            thief = Thief(
                self.deployment,
                operator,
                self.supervisor,
                sender,
                event_log,
                readers,
                self.plan.seed,
            )
            async with _in_background(
                event_log.listen(publisher, sender.heard),
                readers.keep_reading(),
                self._keep_stored(readers, event_log),
                self.supervisor.keep_scraping(),
            ):
                try:
                    async with asyncio.timeout(timeout_s):
                        await self._all(sender, operator, event_log, attackers, thief)
                except TimeoutError:
                    self.say(f"not completed after {timeout_s:g} s")
                    self.unsettled += self._unfinished(sender, operator, event_log)
                for task in self._requests:
                    task.cancel()
                attackers.stop()
                thief.stop()
                await asyncio.gather(*self._requests, return_exceptions=True)
        return await self._evidence(sender, operator, readers, attackers, rival, thief.thefts)

    async def _all(
        self,
        sender: LoadSender,
        operator: Operator,
        event_log: EventLog,
        attackers: Attackers,
        thief: Thief,
    ) -> None:
        for project in (*PROJECTS, RIVAL):
            await operator.enroll(project)
        async with asyncio.TaskGroup() as group:
            group.create_task(sender.send_all())
            group.create_task(self._keep_schedule(sender, operator, attackers, thief))
        self.seconds["until all was published"] = self.elapsed_s
        self.storage.calm()
        self.say("all published, no more faults; waiting for what is in progress")
        for upload in self.plan.load.uploads:
            if upload.flaw not in FLAWS_WITHOUT_EVENT:
                await event_log.event(upload.upload_id)
        self.say("all uploads reported; waiting for rotations, sweeps and deletions")
        await asyncio.gather(*self._requests)
        self.say("all completed; waiting for the victims of attacks")
        await attackers.all_heard()
        await operator.sweep_again()
        async with open_wire(self.deployment) as wire:
            await wait_until_drained(wire, timeout_s=_EMPTY_S)
        self.seconds["until all was completed"] = self.elapsed_s
        self.say("all completed")

    async def _keep_schedule(
        self, sender: LoadSender, operator: Operator, attackers: Attackers, thief: Thief
    ) -> None:
        for action in self.plan.actions:
            await sender.reached(action.at)
            self.storage.calm(sender.confirmed)
            if action.what not in {"storm", "attack"}:
                self.say(f"{sender.confirmed:>5} confirmed: {action.what} {action.to}")
            await self._do(action, operator, attackers, thief)

    async def _do(
        self, action: Action, operator: Operator, attackers: Attackers, thief: Thief
    ) -> None:
        """Perform an action; the operator's requests run alongside the schedule."""
        requests: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = {
            "rotate": operator.rotate,
            "sweep": operator.sweep,
            "enroll": operator.enroll,
            "delete": operator.delete,
        }
        match action.what:
            case "storm":
                self.storage.storm(action)
            case "attack":
                self._start_request(attackers.attack(action))
            case "steal keyring":
                self._start_request(thief.steal(action))
            case "kill":
                await self.supervisor.kill(action.to)
            case "terminate":
                await self.supervisor.terminate(action.to)
            case "cut":
                self.supervisor.cut(action.to)
            case "stop broker":
                await self._at_broker(self.broker.stop)
            case "kill broker":
                await self._at_broker(self.broker.kill)
            case "new master key":
                self._start_request(operator.rotate_master_key(self.masters))
            case what:
                self._start_request(requests[what](action.to))

    async def _at_broker(self, do: Callable[[], None]) -> None:
        """Complete it even if the run's time is over meanwhile."""
        self._broker_outage = asyncio.create_task(asyncio.to_thread(do))
        await asyncio.shield(self._broker_outage)

    def _start_request(self, request: Coroutine[Any, Any, None]) -> None:
        self._requests.append(asyncio.create_task(request))

    async def _keep_stored(self, readers: GatewayReaders, event_log: EventLog) -> None:
        """Twice a second, give the readers the objects that are stored and will not be deleted."""
        while True:
            await asyncio.sleep(0.5)
            readers.stored = [
                upload
                for upload in self.plan.load.uploads
                if not upload.deleted
                and upload.upload_id in event_log.events
                and any(e.type == "upload.stored" for e in event_log.events[upload.upload_id])
            ]

    def _unfinished(self, sender: LoadSender, operator: Operator, event_log: EventLog) -> list[str]:
        """What was not completed when the time was over."""
        ends = [f"{len(self.plan.load.order) - sender.confirmed} publishes were not confirmed"]
        ends += [
            f"upload {upload.upload_id} of {upload.project}/{upload.key}: no event"
            for upload in self.plan.load.uploads
            if upload.upload_id not in event_log.events and upload.flaw not in FLAWS_WITHOUT_EVENT
        ]
        for request in operator.requested:
            types = {event.type for event in event_log.events.get(request.request_id, ())}
            if request.expected_event not in types:
                ends.append(f"{request.expected_event} of {request.project}: missing ({types})")
        return ends

    async def _evidence(
        self,
        sender: LoadSender,
        operator: Operator,
        readers: GatewayReaders,
        attackers: Attackers,
        rival: Tenant,
        thefts: list[Theft],
    ) -> Evidence:
        if self._broker_outage is not None:
            await self._broker_outage
        await self.supervisor.scrape()
        self.say("asking the console what it has seen")
        shown_at = f"http://127.0.0.1:{self.supervisor.processes[CONSOLE].port}"
        misreported = await console_reports.misreported(shown_at, VIEWER, operator.requested)
        self.say("ending the processes")
        await self.supervisor.end()
        left = await asyncio.to_thread(leftovers, self.deployment)
        if left:
            await self.supervisor.clean_staging(lambda: not leftovers(self.deployment))
        self.supervisor.keep_logs()
        broker: OnBroker = await on_broker(self.deployment)
        await asyncio.to_thread(self.broker.end)
        faults = sorted(self.storage.done.items())
        return Evidence(
            plan=self.plan,
            deployment=self.deployment,
            folder=self.folder,
            tenants=self.tenants,
            masters=self.masters,
            confirmed=frozenset(sender.confirmed_ids),
            sent=sender.publisher.sent,
            requested=operator.requested,
            tagged=operator.tagged,
            broker=broker,
            attacks=attackers.attacks,
            rival=rival,
            thefts=thefts,
            unsettled=self.unsettled,
            unexpected_exits=self.supervisor.unexpected_exits,
            statuses=self.supervisor.statuses,
            misread=readers.wrong,
            misreported=misreported,
            counts={
                "done to processes": dict(self.supervisor.done),
                "done to the broker": dict(self.broker.done),
                "done to requests to the storage": {
                    f"{fault}: {kind}": count for (fault, kind), count in faults
                },
                "attacks": dict(attackers.attacks.done),
                "callers under attack": len(attackers.attacks.waited),
                "keyrings stolen": dict(Counter(theft.kind for theft in thefts)),
                "refusals of stolen keyrings": _sum(theft.refusals for theft in thefts),
                "gateway's responses to the thief": _sum(theft.responses for theft in thefts),
                "requests to the storage": dict(self.storage.seen.most_common()),
                "publisher's retries": dict(sender.repeated),
                "gateway's responses": dict(readers.seen),
                "leftovers of killed processes, removed": len(left),
                "processes started": sum(
                    len(process.logs) for process in self.supervisor.processes.values()
                ),
                "seconds": self.seconds,
            },
        )


def _sum(counters: Iterable[Counter[str]]) -> dict[str, int]:
    return dict(sum(counters, Counter[str]()))


@contextlib.asynccontextmanager
async def _in_background(*works: Coroutine[Any, Any, None]) -> Any:
    """Run these during the block; if one fails, the block fails at its end."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end


async def run(
    plan: Plan,
    rabbitmq: RabbitMQ,
    s3: S3Server,
    folder: Path,
    *,
    timeout_s: float,
    say: Callable[[str], None] = print,
) -> Evidence:
    """Perform a whole run on a running broker and a running storage server.

    The broker is stopped at the end: its disk is part of the evidence.
    """
    deployment = ConsoleDeployment(rabbitmq.url, s3, await asyncio.to_thread(new_bucket, s3))
    async with AsyncExitStack() as stack:
        storage = await stack.enter_async_context(run_fault_proxy(s3.endpoint_url))
        supervisor = await stack.enter_async_context(run_supervisor(deployment, folder))
        broker = Broker(rabbitmq, folder)
        return await Run(plan, deployment, folder, broker, storage, supervisor, say).execute(
            timeout_s
        )
