"""One run: everything started, the load sent, the harm done on schedule, the evidence taken."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyturn.crypto import SigningKey, new_api_key
from tools.chaos.attackers import Attackers, publishers_with_rival
from tools.chaos.broker import Broker
from tools.chaos.bucket_checks import leftovers
from tools.chaos.evidence import Evidence, OnBroker, on_broker
from tools.chaos.fault_proxy import Harming, harming
from tools.chaos.gateway_readers import Reading
from tools.chaos.load import LATE_PROJECT, PROJECTS, UNTOLD
from tools.chaos.load_sender import (
    PUBLISH_TIMEOUT_S,
    Hearing,
    Keeping,
    Sending,
    publisher_settings,
    staging_settings,
)
from tools.chaos.operator import Operator, new_masters
from tools.chaos.schedule import GATEWAY, PUBLISHER, RIVAL
from tools.chaos.supervisor import Crew, crew
from tools.harness.deployment import Deployment
from tools.harness.sweep_scenario import master_keys_setting, wait_until_drained
from tools.harness.tenants import Tenant
from tools.harness.wire import open_wire
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import Any

    from tools.chaos.schedule import Action, Plan
    from tools.servers import RabbitMQ, S3Server

_EMPTY_S = 120


@dataclass
class Run:
    """A run under way."""

    plan: Plan
    deployment: Deployment
    folder: Path
    broker: Broker
    storage: Harming
    crew: Crew
    print: Callable[[str], None]
    tenants: dict[str, Tenant] = field(default_factory=dict)
    masters: dict[str, bytes] = field(default_factory=dict)
    unsettled: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    _asking: list[asyncio.Task[None]] = field(default_factory=list)
    _away: asyncio.Task[None] | None = None
    _began: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Since the beginning, to a tenth of a second."""
        return round(time.monotonic() - self._began, 1)

    def say(self, what: str) -> None:
        """Tell what is going on, and since when."""
        self.print(f"{self.elapsed_s:>6} s  {what}")

    async def to_its_end(self, timeout_s: float) -> Evidence:
        """Everything; where it does not settle in time, what did not is told in the evidence."""
        self.masters = new_masters(self.deployment.master_key)
        every = (*PROJECTS, LATE_PROJECT)
        self.tenants = {
            name: Tenant(self.deployment, name, [new_api_key()], dict(self.masters))
            for name in every
        }
        self.say("starting the processes")
        rival_key = SigningKey.from_seed(os.urandom(32))
        publishers = publishers_with_rival(self.deployment, rival_key)
        await self.crew.hire(self.storage.url, master_keys_setting(self.masters), publishers)
        await asyncio.to_thread(self.broker.wait_until_it_survives)
        way = self.crew.url_of(self.crew.posts[PUBLISHER].way)
        async with Keeping.open(
            publisher_settings(self.deployment, way),
            s3=staging_settings(self.deployment, self.storage.url),
            publish_timeout_s=PUBLISH_TIMEOUT_S,
        ) as publisher:
            hearing = Hearing()
            late = {LATE_PROJECT: asyncio.Event()}
            sending = Sending(self.plan, self.deployment, publisher, hearing, late)
            rival = Tenant(self.deployment, RIVAL, [new_api_key()], dict(self.masters))
            everybody = {**self.tenants, RIVAL: rival}
            operator = Operator(self.crew, sending, hearing, everybody)
            attackers = Attackers(
                self.deployment,
                rival_key,
                self.plan.seed,
                publisher,
                hearing,
                {upload.upload_id: upload for upload in self.plan.load.uploads},
            )
            url = f"http://127.0.0.1:{self.crew.posts[GATEWAY].port}"
            reading = Reading(operator, url, self.plan.seed, denied=self.storage.denied)
            async with _meanwhile(
                hearing.listen(publisher, sending.heard),
                reading.keep_reading(),
                self._keep_stored(reading, hearing),
                self.crew.keep_scraping(),
            ):
                try:
                    async with asyncio.timeout(timeout_s):
                        await self._all(sending, operator, hearing, attackers)
                except TimeoutError:
                    self.say(f"not settled after {timeout_s:g} s")
                    self.unsettled += self._open_ends(sending, operator, hearing)
                for task in self._asking:
                    task.cancel()
                attackers.stop()
                await asyncio.gather(*self._asking, return_exceptions=True)
        return await self._evidence(sending, operator, reading, attackers, rival)

    async def _all(
        self, sending: Sending, operator: Operator, hearing: Hearing, attackers: Attackers
    ) -> None:
        for project in (*PROJECTS, RIVAL):
            await operator.enrol(project)
        async with asyncio.TaskGroup() as group:
            group.create_task(sending.send_all())
            group.create_task(self._keep_schedule(sending, operator, attackers))
        self.seconds["until all was sent"] = self.elapsed_s
        self.storage.calm()
        self.say("all sent, no more harm; waiting for what is under way")
        for upload in self.plan.load.uploads:
            if upload.flaw not in UNTOLD:
                await hearing.event(upload.upload_id)
        self.say("all uploads told; waiting for rotations, sweeps and deletions")
        await asyncio.gather(*self._asking)
        self.say("all ended; waiting for those who were attacked")
        await attackers.all_heard()
        await operator.sweep_again()
        async with open_wire(self.deployment) as wire:
            await wait_until_drained(wire, timeout_s=_EMPTY_S)
        self.seconds["until all was settled"] = self.elapsed_s
        self.say("all settled")

    async def _keep_schedule(
        self, sending: Sending, operator: Operator, attackers: Attackers
    ) -> None:
        for action in self.plan.actions:
            await sending.reached(action.at)
            self.storage.calm(sending.confirmed)
            if action.what not in {"storm", "attack"}:
                self.say(f"{sending.confirmed:>5} confirmed: {action.what} {action.to}")
            await self._do(action, operator, attackers)

    async def _do(self, action: Action, operator: Operator, attackers: Attackers) -> None:
        """Do it; what an operator asks for goes on beside the schedule."""
        asked: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = {
            "rotate": operator.rotate,
            "sweep": operator.sweep,
            "enrol": operator.enrol,
            "delete": operator.delete,
        }
        match action.what:
            case "storm":
                self.storage.storm(action)
            case "attack":
                self._ask(attackers.attack(action))
            case "kill":
                await self.crew.kill(action.to)
            case "terminate":
                await self.crew.terminate(action.to)
            case "cut":
                self.crew.cut(action.to)
            case "stop broker":
                await self._at_broker(self.broker.stop)
            case "kill broker":
                await self._at_broker(self.broker.kill)
            case "new master key":
                self._ask(operator.turn_master(self.masters))
            case what:
                self._ask(asked[what](action.to))

    async def _at_broker(self, do: Callable[[], None]) -> None:
        """Done to its end, where the run's time is over meanwhile too."""
        self._away = asyncio.create_task(asyncio.to_thread(do))
        await asyncio.shield(self._away)

    def _ask(self, request: Coroutine[Any, Any, None]) -> None:
        self._asking.append(asyncio.create_task(request))

    async def _keep_stored(self, reading: Reading, hearing: Hearing) -> None:
        """Let readers know, twice a second, of what is stored and not to be deleted."""
        while True:
            await asyncio.sleep(0.5)
            reading.stored = [
                upload
                for upload in self.plan.load.uploads
                if not upload.deleted
                and upload.upload_id in hearing.told
                and any(e.type == "upload.stored" for e in hearing.told[upload.upload_id])
            ]

    def _open_ends(self, sending: Sending, operator: Operator, hearing: Hearing) -> list[str]:
        """What had no end when the time was over."""
        ends = [f"{len(self.plan.load.order) - sending.confirmed} sendings were not confirmed"]
        ends += [
            f"upload {upload.upload_id} of {upload.project}/{upload.key}: nothing was told"
            for upload in self.plan.load.uploads
            if upload.upload_id not in hearing.told and upload.flaw not in UNTOLD
        ]
        for asked in operator.asked:
            types = {event.type for event in hearing.told.get(asked.request_id, ())}
            if asked.must_be_told not in types:
                ends.append(f"{asked.must_be_told} of {asked.project}: not told ({types})")
        return ends

    async def _evidence(
        self,
        sending: Sending,
        operator: Operator,
        reading: Reading,
        attackers: Attackers,
        rival: Tenant,
    ) -> Evidence:
        if self._away is not None:
            await self._away
        await self.crew.scrape()
        self.say("ending the processes")
        await self.crew.end()
        left = await asyncio.to_thread(leftovers, self.deployment)
        if left:
            await self.crew.sweep_up(lambda: not leftovers(self.deployment))
        self.crew.keep_logs()
        broker: OnBroker = await on_broker(self.deployment)
        await asyncio.to_thread(self.broker.end)
        harms = sorted(self.storage.done.items())
        return Evidence(
            plan=self.plan,
            deployment=self.deployment,
            folder=self.folder,
            tenants=self.tenants,
            masters=self.masters,
            confirmed=frozenset(sending.confirmed_ids),
            sent=sending.publisher.sent,
            asked=operator.asked,
            tagged=operator.tagged,
            broker=broker,
            attacks=attackers.attacks,
            rival=rival,
            unsettled=self.unsettled,
            fallen=self.crew.fallen,
            statuses=self.crew.statuses,
            misread=reading.wrong,
            counts={
                "done to processes": dict(self.crew.done),
                "done to the broker": dict(self.broker.done),
                "done to requests to the storage": {
                    f"{harm}: {kind}": count for (harm, kind), count in harms
                },
                "attacks": dict(attackers.attacks.done),
                "callers under attack": len(attackers.attacks.waited),
                "requests to the storage": dict(self.storage.seen.most_common()),
                "publisher's repetitions": dict(sending.repeated),
                "gateway's answers": dict(reading.seen),
                "left by killed processes, and swept up": len(left),
                "processes started": sum(len(post.logs) for post in self.crew.posts.values()),
                "seconds": self.seconds,
            },
        )


@contextlib.asynccontextmanager
async def _meanwhile(*works: Coroutine[Any, Any, None]) -> Any:
    """Things that go on while the block runs; one that fails fails it at its end."""
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
    """Do a whole run on a running broker and a running storage server.

    The broker is stopped at the end: its disk is part of the evidence.
    """
    deployment = Deployment(rabbitmq.url, s3, await asyncio.to_thread(new_bucket, s3))
    async with AsyncExitStack() as stack:
        storage = await stack.enter_async_context(harming(s3.endpoint_url))
        hired = await stack.enter_async_context(crew(deployment, folder))
        broker = Broker(rabbitmq, folder)
        return await Run(plan, deployment, folder, broker, storage, hired, say).to_its_end(
            timeout_s
        )
