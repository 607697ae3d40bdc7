"""One run: starts everything, sends the load, injects faults on schedule, collects evidence."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from contextlib import AsyncExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Final

from keyturn.crypto import SigningKey, new_api_key
from tools.chaos.attackers import Attackers, publishers_with_rival
from tools.chaos.bucket_checks import leftovers
from tools.chaos.drop_checks import DropState, read_state, summary, taken_in
from tools.chaos.drops import DropWriter, SourceBuckets, make_drops
from tools.chaos.event_refusal import refuse_events
from tools.chaos.evidence import Evidence, on_broker
from tools.chaos.fault_proxy import FaultProxy, run_fault_proxy
from tools.chaos.gateway_readers import GatewayReaders
from tools.chaos.key_outages import STORE, CustomerKeyStore, KeyOutages, waits
from tools.chaos.operator import NEW_MASTER, KeyringFile, Operator, new_masters
from tools.chaos.plan import (
    CONSOLE,
    CUSTOMER_KEYS,
    FALSE_RESPONSES,
    FLAWS_WITHOUT_EVENT,
    GATEWAY,
    LATE_PROJECT,
    PROJECTS,
    PUBLISHER,
    RIVAL,
    SOURCED_PROJECT,
)
from tools.chaos.processes import VIEWER, Broker, Supervisor, run_supervisor
from tools.chaos.publisher import (
    PUBLISH_TIMEOUT_S,
    EventLog,
    LoadSender,
    RecordingPublisher,
)
from tools.chaos.thief import Thief
from tools.harness.console import ConsoleDeployment
from tools.harness.console_client import console_client
from tools.harness.scene import master_keys_setting, wait_until_drained
from tools.harness.tenants import Tenant
from tools.harness.wire import open_wire
from tools.servers import new_bucket
from tools.servers.openbao import OpenBao

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence
    from pathlib import Path
    from typing import Any

    from tools.chaos.key_outages import CustomerSecret
    from tools.chaos.operator import OperatorRequest
    from tools.chaos.plan import Action, Plan
    from tools.harness.console import Account
    from tools.harness.console_client import ConsoleClient
    from tools.servers import RabbitMQ, S3Server

_ENDS: Final = ("rotation.completed", "sweep.completed")
_ENDED: Final = (">Clean<", ">Not clean")
_SHOWN_S: Final = 60
_PAUSE_S: Final = 0.5
_EMPTY_S: Final = 120
_TAKEN_IN_S: Final = 240
_LOOK_EVERY_S: Final = 3.0


class Run:
    """A run in progress."""

    def __init__(
        self,
        plan: Plan,
        deployment: ConsoleDeployment,
        folder: Path,
        broker: Broker,
        storage: FaultProxy,
        buckets: SourceBuckets,
        sources: FaultProxy,
        supervisor: Supervisor,
        customer_keys: CustomerKeyStore,
        say: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self.deployment = deployment
        self.folder = folder
        self.broker = broker
        self.storage = storage
        self.buckets = buckets
        self.sources = sources
        self.supervisor = supervisor
        self.customer_keys = customer_keys
        self.masters = new_masters(deployment.master_key)
        self.tenants = {
            name: Tenant(deployment, name, [new_api_key()], dict(self.masters))
            for name in (*PROJECTS, LATE_PROJECT, SOURCED_PROJECT, *CUSTOMER_KEYS, RIVAL)
        }
        self.rival_key = SigningKey.from_seed(os.urandom(32))
        self.event_log = EventLog()
        self.unsettled: list[str] = []
        self.seconds: dict[str, float] = {}
        self._print = say
        self._requests: list[asyncio.Task[None]] = []
        self._broker_outage: asyncio.Task[None] | None = None
        self._began = time.monotonic()

    def _say(self, what: str) -> None:
        """Print the progress with the elapsed time."""
        self._print(f"{self._elapsed_s():>6} s  {what}")

    def _elapsed_s(self) -> float:
        return round(time.monotonic() - self._began, 1)

    def _port(self, name: str) -> str:
        return f"http://127.0.0.1:{self.supervisor.processes[name].port}"

    async def execute(self, timeout_s: float) -> Evidence:
        """The complete run; what did not complete in time is named in the evidence."""
        self._say("starting the processes")
        publishers = publishers_with_rival(self.deployment, self.rival_key)
        await self.supervisor.start_all(
            self.storage.url,
            master_keys_setting(self.masters),
            self.customer_keys.settings(),
            **self.buckets.settings(publishers, self.sources.url),
        )
        await asyncio.to_thread(self.broker.wait_until_it_survives)
        broker_proxy = self.supervisor.url_of(self.supervisor.processes[PUBLISHER].broker_proxy)
        async with RecordingPublisher.open(
            self.deployment.publisher_settings(broker_proxy),
            s3=self.deployment.s3_settings(self.storage.url),
            publish_timeout_s=PUBLISH_TIMEOUT_S,
        ) as publisher:
            self.publisher = publisher
            async with _in_background(
                self.event_log.listen(publisher, self.sender.heard),
                self.readers.keep_reading(),
                self._keep_stored(),
                self.supervisor.keep_scraping(),
            ):
                try:
                    async with asyncio.timeout(timeout_s):
                        await self._all()
                except TimeoutError:
                    self._say(f"not completed after {timeout_s:g} s")
                    self.unsettled += self._unfinished()
                for task in self._requests:
                    task.cancel()
                self.attackers.stop()
                self.thief.stop()
                self.key_outages.stop()
                await asyncio.gather(*self._requests, return_exceptions=True)
        return await self._evidence()

    # Who acts during the run.

    @cached_property
    def sender(self) -> LoadSender:
        late = {LATE_PROJECT: asyncio.Event()}
        return LoadSender(self.plan, self.deployment, self.publisher, self.event_log, late)

    @cached_property
    def operator(self) -> Operator:
        return Operator(self.supervisor, self.sender, self.event_log, self.tenants)

    @cached_property
    def readers(self) -> GatewayReaders:
        return GatewayReaders(
            self.operator, self._port(GATEWAY), self.plan.seed, denied=self.storage.denied
        )

    @cached_property
    def attackers(self) -> Attackers:
        return Attackers(
            self.deployment,
            self.rival_key,
            self.plan.seed,
            self.publisher,
            self.event_log,
            {upload.upload_id: upload for upload in self.plan.load.uploads},
        )

    @cached_property
    def thief(self) -> Thief:
        return Thief(
            self.deployment,
            self.operator,
            self.supervisor,
            self.sender,
            self.event_log,
            self.readers,
            self.plan.seed,
        )

    @cached_property
    def key_outages(self) -> KeyOutages:
        return KeyOutages(
            self.customer_keys, self.supervisor, self.sender, self.event_log, self.readers
        )

    @cached_property
    def writer(self) -> DropWriter:
        drops = make_drops(self.plan.seed, len(self.plan.load.order))
        return DropWriter(self.deployment, self.buckets, self.sender, self.event_log, drops)

    # What they do.

    async def _all(self) -> None:
        for project in (*PROJECTS, SOURCED_PROJECT, RIVAL):
            await self.operator.enroll(project)
        locked, late = CUSTOMER_KEYS
        await self.operator.enroll(locked, f"{STORE}/{CUSTOMER_KEYS[locked][0]}")
        await self.operator.enroll(late)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.sender.send_all())
            group.create_task(self.writer.write_all())
            group.create_task(self._keep_schedule())
        self.seconds["until all was published"] = self._elapsed_s()
        self.storage.calm()
        self.sources.calm()
        self._say("all published, no more faults; waiting for what is in progress")
        for upload in self.plan.load.uploads:
            if upload.flaw not in FLAWS_WITHOUT_EVENT:
                await self.event_log.event(upload.upload_id)
        self._say("all uploads reported; waiting for rotations, sweeps and deletions")
        await asyncio.gather(*self._requests)
        self._say("all completed; waiting for the victims of attacks")
        await self.attackers.all_heard()
        await self.operator.sweep_again()
        self._say("waiting for the sources")
        await self._all_taken_in()
        async with open_wire(self.deployment) as wire:
            await wait_until_drained(wire, timeout_s=_EMPTY_S)
        self.seconds["until all was completed"] = self._elapsed_s()
        self._say("all completed")

    async def _keep_schedule(self) -> None:
        for action in self.plan.actions:
            await self.sender.reached(action.at)
            for proxy in (self.storage, self.sources):
                proxy.calm(self.sender.confirmed)
            if action.what not in {"storm", "attack"}:
                what = f"{action.what} {action.to} {action.kind}"
                self._say(f"{self.sender.confirmed:>5} confirmed: {what}")
            await self._do(action)

    async def _do(self, action: Action) -> None:
        """Perform an action; what people and attackers request runs alongside the schedule."""
        operator = self.operator
        requests: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "attack": lambda: self.attackers.attack(action),
            "steal keyring": lambda: self.thief.steal(action),
            "new master key": lambda: operator.rotate_master_key(self.masters),
            "rotate": lambda: operator.rotate(action.to),
            "new customer key": lambda: operator.rotate(action.to, f"{STORE}/{action.kind}"),
            "customer key away": lambda: self.key_outages.take_away(action),
            "sweep": lambda: operator.sweep(action.to),
            "enroll": lambda: operator.enroll(action.to),
            "delete": lambda: operator.delete(action.to),
            "sources away": lambda: self._keep_away(action.seconds),
            "refuse events": lambda: refuse_events(self.deployment, action.seconds),
        }
        match action.what:
            case "storm":
                self.storage.storm(action)
                if action.to not in FALSE_RESPONSES:
                    self.sources.storm(action)
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
            case what:
                name = f"{action.what} {action.to} {action.kind}"
                self._requests.append(asyncio.create_task(requests[what](), name=name))

    async def _keep_away(self, seconds: float) -> None:
        """The server of the sources answers no worker for a while."""
        self.sources.is_away = True
        try:
            await asyncio.sleep(seconds)
        finally:
            self.sources.is_away = False

    async def _drop_state(self) -> DropState:
        master_key = (NEW_MASTER, self.masters[NEW_MASTER])
        return await asyncio.to_thread(read_state, self.deployment, self.buckets, master_key)

    async def _all_taken_in(self) -> None:
        """Wait for the listings; what the sources still lack then, the checks will say."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TAKEN_IN_S):
                while taken_in(self.writer.written, await self._drop_state()):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_EVERY_S)

    async def _at_broker(self, do: Callable[[], None]) -> None:
        """Complete it even if the run's time is over meanwhile."""
        self._broker_outage = asyncio.create_task(asyncio.to_thread(do))
        await asyncio.shield(self._broker_outage)

    async def _keep_stored(self) -> None:
        """Twice a second, give the readers the objects that are stored and will not be deleted."""
        while True:
            await asyncio.sleep(_PAUSE_S)
            self.readers.stored = [
                upload
                for upload in self.plan.load.uploads
                if not upload.deleted and self.event_log.is_stored(upload.upload_id)
            ]

    def _unfinished(self) -> list[str]:
        """What was not completed when the time was over."""
        events = self.event_log.events
        unconfirmed = len(self.plan.load.order) - self.sender.confirmed
        ends = [f"{unconfirmed} publishes were not confirmed"] if unconfirmed else []
        ends += [f"{task.get_name()}: unfinished" for task in self._requests if not task.done()]
        ends += [
            f"upload {upload.upload_id} of {upload.project}/{upload.key}: no event"
            for upload in self.plan.load.uploads
            if upload.upload_id not in events and upload.flaw not in FLAWS_WITHOUT_EVENT
        ]
        for request in self.operator.requested:
            types = {event.type for event in events.get(request.request_id, ())}
            if request.expected_event not in types:
                ends.append(f"{request.expected_event} of {request.project}: missing ({types})")
        return ends

    async def _evidence(self) -> Evidence:
        if self._broker_outage is not None:
            await self._broker_outage
        await self.supervisor.scrape()
        self._say("asking the console what it has seen")
        missed = await misreported(self._port(CONSOLE), VIEWER, self.operator.requested)
        self._say("ending the processes")
        await self.supervisor.end()
        left = await asyncio.to_thread(leftovers, self.deployment)
        if left:
            await self.supervisor.clean_staging(lambda: not leftovers(self.deployment))
        self.supervisor.keep_logs()
        broker = await on_broker(self.deployment)
        written, state = self.writer.written, await self._drop_state()
        secrets = await asyncio.to_thread(self._customer_secrets)
        await asyncio.to_thread(self.broker.end)
        rival = self.tenants[RIVAL]
        return Evidence(
            plan=self.plan,
            deployment=self.deployment,
            folder=self.folder,
            tenants={name: one for name, one in self.tenants.items() if one is not rival},
            masters=self.masters,
            confirmed=frozenset(self.sender.confirmed_ids),
            sent=self.publisher.sent,
            requested=self.operator.requested,
            tagged=self.operator.tagged,
            broker=broker,
            attacks=self.attackers.attacks,
            rival=rival,
            thefts=self.thief.thefts,
            unsettled=self.unsettled,
            unexpected_exits=self.supervisor.unexpected_exits,
            statuses=self.supervisor.statuses,
            misread=self.readers.wrong,
            misreported=missed,
            written=written,
            drop_state=state,
            source_buckets=self.buckets,
            customer_secrets=secrets,
            key_outages=self.key_outages.outages,
            counts=self._counts()
            | {
                "leftovers of killed processes, removed": len(left),
                "sources": summary(written, state),
            },
        )

    def _customer_secrets(self) -> dict[str, list[CustomerSecret | None]]:
        """By project and generation; of projects without keyrings there are none."""
        found = {}
        for project in CUSTOMER_KEYS:
            present = KeyringFile.of(self.tenants[project]).find()
            records = [*self.operator.keyrings.get(project, ()), *([present] if present else ())]
            found[project] = self.customer_keys.secrets(
                self.deployment.name, project, records, self.masters
            )
        return found

    def _counts(self) -> dict[str, Any]:
        attacks, thefts = self.attackers.attacks, self.thief.thefts
        processes = self.supervisor.processes.values()
        return {
            "done to processes": dict(self.supervisor.done),
            "done to the broker": dict(self.broker.done),
            "done to requests to the storage": _faults(self.storage),
            "done to requests to the sources": _faults(self.sources),
            "attacks": dict(attacks.done),
            "callers under attack": len(attacks.waited),
            "keyrings stolen": dict(Counter(theft.kind for theft in thefts)),
            "refusals of stolen keyrings": _sum(theft.refusals for theft in thefts),
            "customer keys away": [each.shown() for each in self.key_outages.outages],
            "waits of other projects' uploads, s": waits(self.sender, self.key_outages.outages),
            "gateway's responses to the thief": _sum(theft.responses for theft in thefts),
            "requests to the storage": dict(self.storage.seen.most_common()),
            "publisher's retries": dict(self.sender.repeated),
            "gateway's responses": dict(self.readers.seen),
            "processes started": sum(len(process.logs) for process in processes),
            "seconds": self.seconds,
        }


def _faults(proxy: FaultProxy) -> dict[str, int]:
    return {f"{fault}: {kind}": count for (fault, kind), count in sorted(proxy.done.items())}


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


async def misreported(
    url: str,
    account: Account,
    requested: Sequence[OperatorRequest],
    *,
    timeout_s: float = _SHOWN_S,
) -> list[str]:
    """Every rotation and sweep that ended and that the console at this URL does not show so.

    The console was killed twice, and lost its broker (SPEC 16).
    """
    pages = {
        f"/sweeps/{'_all' if each.project == '*' else each.project}/{each.request_id}"
        for each in requested
        if each.expected_event in _ENDS
    }
    until = time.monotonic() + timeout_s
    async with console_client(url, account) as client:
        while pages := {path for path in pages if not await _is_shown_ended(client, path)}:
            if time.monotonic() > until:
                break
            await asyncio.sleep(_PAUSE_S)
    return [f"{path} is not shown as ended" for path in sorted(pages)]


async def _is_shown_ended(client: ConsoleClient, path: str) -> bool:
    page = await client.get(path)
    return page.status == 200 and any(text in page.text for text in _ENDED)


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
        buckets = await asyncio.to_thread(SourceBuckets.create, s3)
        sources = await stack.enter_async_context(run_fault_proxy(s3.endpoint_url))
        openbao = stack.enter_context(OpenBao())
        keys = await asyncio.to_thread(CustomerKeyStore.create, openbao)
        supervisor = await stack.enter_async_context(run_supervisor(deployment, folder))
        broker = Broker(rabbitmq, folder)
        running = Run(
            plan, deployment, folder, broker, storage, buckets, sources, supervisor, keys, say
        )
        return await running.execute(timeout_s)
