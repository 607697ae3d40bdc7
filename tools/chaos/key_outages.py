"""Customer keys that are taken away for a while during a run, and given back (SPEC 2.6).

Two projects have customer keys in one OpenBao server. Each outage is of the keys of one of them, or
of the server, and lasts until an upload of that project was put off and, after that, others'
uploads were stored.
"""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from keyturn.crypto import Secret, open_record, record_kek
from keyturn.crypto.customer_keys import associated_data
from keyturn.identifiers import keyring_s3_key
from tools.chaos.plan import CUSTOMER_KEYS, PROJECTS
from tools.chaos.processes import LogReader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tools.chaos.gateway_readers import GatewayReaders
    from tools.chaos.plan import Action
    from tools.chaos.processes import Supervisor
    from tools.chaos.publisher import EventLog, LoadSender
    from tools.servers.openbao import OpenBao

STORE: Final = "kms"
OTHERS: Final = 5
"""So many uploads of other projects must be stored during each outage."""
_POLICY: Final = "customer-keys"
# The shortest: an outage is noticed after this time, or a quarter of it.
_CACHE_S: Final = 10
_HELD_S: Final = 90.0
# What was put off is tried again after 1 s, 5 s more and 30 s more. Were its key away once more
# then, it would wait for minutes.
_PAUSE_S: Final = 35.0
_LOOK_S: Final = 0.5
_USED_EVERY_S: Final = 2.0
# The longest pause between two calls about a secret that was refused, and the cache.
_REFUSED_S: Final = 75.0 + _CACHE_S
_PUT_OFF: Final = ("customer_key_refused", "customer_key_unavailable")


@dataclass(frozen=True)
class CustomerSecret:
    """A customer secret, as its store decrypted it."""

    secret_id: str
    value: Secret


@dataclass
class KeyOutage:
    """A time without the keys of a project, or without their store.

    Attributes:
        kind: One of `plan.KEY_OUTAGES`.
        project: The project whose uploads must wait.
        began_s, ended_s: Monotonic times.
        put_off: The uploads that workers put off meanwhile.
        others: The uploads of projects without customer keys that were stored after that.
    """

    kind: str
    project: str
    began_s: float
    ended_s: float = 0
    put_off: int = 0
    others: int = 0

    def shown(self) -> dict[str, object]:
        """It as JSON, with how long it lasted."""
        return {
            "kind": self.kind,
            "seconds": round(self.ended_s - self.began_s, 1),
            "put off": self.put_off,
            "stored by others": self.others,
        }


@dataclass(frozen=True)
class CustomerKeyStore:
    """The server with the customer keys of a run, and the token of Keyturn's processes."""

    openbao: OpenBao
    token: str = field(repr=False)

    @classmethod
    def create(cls, openbao: OpenBao) -> CustomerKeyStore:
        """Create all keys of the plan on a running server."""
        for key in _keys(CUSTOMER_KEYS):
            openbao.create_customer_key(key)
        openbao.allow_customer_keys(_POLICY, *_keys(CUSTOMER_KEYS))
        return cls(openbao, openbao.make_token(_POLICY))

    def settings(self) -> dict[str, str]:
        """Of workers and gateways."""
        stores = {
            STORE: {
                **self.openbao.customer_key_store(self.token, *_keys(CUSTOMER_KEYS)),
                "projects": list(CUSTOMER_KEYS),
            }
        }
        return {"CUSTOMER_KEY_STORES": json.dumps(stores), "CUSTOMER_KEY_CACHE_S": str(_CACHE_S)}

    def take_away(self, kind: str, project: str) -> None:
        """Begin an outage."""
        match kind:
            case "key denied":
                others = {name: keys for name, keys in CUSTOMER_KEYS.items() if name != project}
                self.openbao.allow_customer_keys(_POLICY, *_keys(others))
            case "key disabled":
                for key in CUSTOMER_KEYS[project]:
                    self.openbao.rotate_key(key)
                    newest = self.openbao.call("GET", f"transit/keys/{key}")["data"]
                    version = newest["latest_version"]
                    self.openbao.configure_key(key, min_decryption_version=version)
            case "store stopped":
                self.openbao.stop()
            case _:
                self.openbao.suspend()

    def give_back(self, kind: str, project: str) -> None:
        """End it."""
        match kind:
            case "key denied":
                self.openbao.allow_customer_keys(_POLICY, *_keys(CUSTOMER_KEYS))
            case "key disabled":
                for key in CUSTOMER_KEYS[project]:
                    self.openbao.configure_key(key, min_decryption_version=1)
            case "store stopped":
                self.openbao.start()
            case _:
                self.openbao.resume()

    def secret(
        self, deployment: str, project: str, customer_key: Mapping[str, str]
    ) -> CustomerSecret:
        """What a generation's customer key decrypts."""
        secret_id = customer_key["secret_id"]
        answer = self.openbao.call(
            "POST",
            f"transit/decrypt/{customer_key['key']}",
            {
                "ciphertext": customer_key["wrapped"],
                "associated_data": associated_data(deployment, project, secret_id),
            },
        )
        return CustomerSecret(secret_id, Secret(base64.b64decode(answer["data"]["plaintext"])))

    def secrets(
        self,
        deployment: str,
        project: str,
        records: Sequence[bytes],
        masters: Mapping[str, bytes],
    ) -> list[CustomerSecret | None]:
        """The secrets of all generations, whose keyrings these are."""
        found = [_current_key(project, record, masters) for record in records]
        return [None if key is None else self.secret(deployment, project, key) for key in found]


def _keys(of: Mapping[str, Sequence[str]]) -> list[str]:
    return [key for keys in of.values() for key in keys]


def _current_key(
    project: str, record: bytes, masters: Mapping[str, bytes]
) -> dict[str, str] | None:
    outer = json.loads(record)
    kek = record_kek(masters[outer["master_key"]], project)
    sealed = base64.b64decode(outer["sealed"], validate=True)
    keyring: dict[str, Any] = json.loads(open_record(kek, keyring_s3_key(project), sealed))
    return keyring.get("customer_key")


@dataclass
class KeyOutages:
    """Takes customer keys away; `outages` records it."""

    store: CustomerKeyStore
    supervisor: Supervisor
    sender: LoadSender
    event_log: EventLog
    readers: GatewayReaders
    outages: list[KeyOutage] = field(default_factory=list)
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)
    _early: list[asyncio.Task[None]] = field(default_factory=list)

    async def take_away(self, action: Action) -> None:
        """Take a project's keys away, or their store, until that is noticed; then give it back."""
        async with self._one_at_a_time:
            if self.outages:
                since_s = time.monotonic() - self.outages[-1].ended_s
                await asyncio.sleep(max(0, _PAUSE_S - since_s))
            outage = KeyOutage(action.kind, action.to, time.monotonic())
            self.outages.append(outage)
            if action.kind.startswith("key "):
                self.readers.refused_until[action.to] = float("inf")
            log = LogReader(self.supervisor, lambda line: _is_put_off(line, action.to))
            try:
                await asyncio.shield(
                    asyncio.to_thread(self.store.take_away, action.kind, action.to)
                )
                await self._hold(outage, log)
            finally:
                await asyncio.shield(
                    asyncio.to_thread(self.store.give_back, action.kind, action.to)
                )
                outage.ended_s = time.monotonic()
                if action.to in self.readers.refused_until:
                    self.readers.refused_until[action.to] = outage.ended_s + _REFUSED_S

    def stop(self) -> None:
        """Cancel the uploads that were published early and are not confirmed."""
        for task in self._early:
            task.cancel()

    async def _hold(self, outage: KeyOutage, log: LogReader) -> None:
        """Use the project until an upload was put off, then others until theirs were stored."""
        stolen = {a.to for a in self.sender.plan.actions if a.what == "steal keyring"}
        other = next(project for project in PROJECTS if project not in stolen)
        before, used_s = 0, 0.0
        while outage.others < OTHERS and time.monotonic() - outage.began_s < _HELD_S:
            if outage.put_off:
                self._send_early(other)
            elif time.monotonic() - used_s >= _USED_EVERY_S:
                used_s = time.monotonic()
                self._send_early(outage.project)
            await asyncio.sleep(_LOOK_S)
            if not outage.put_off:
                before = self._stored_by_others()
            outage.put_off = log.found()["upload"]
            outage.others = self._stored_by_others() - before

    def _send_early(self, project: str) -> None:
        self._early.append(asyncio.create_task(self.sender.send_early(project)))

    def _stored_by_others(self) -> int:
        return sum(
            event.type == "upload.stored" and event.project not in CUSTOMER_KEYS
            for events in self.event_log.events.values()
            for event in events
        )


def _is_put_off(line: str, project: str) -> bool:
    return (
        '"event":"retry scheduled"' in line
        and any(f'"detail":"{STORE}/{key}:' in line for key in CUSTOMER_KEYS[project])
        and any(f'"code":"{code}"' in line for code in _PUT_OFF)
    )


def waits(sender: LoadSender, outages: Sequence[KeyOutage]) -> dict[str, dict[str, float]]:
    """Seconds from confirmation to event of uploads of projects without customer keys.

    Those during whose wait a key or a store was away, and the others.
    """
    found: dict[str, list[float]] = {"while a store was away": [], "otherwise": []}
    for upload in sender.plan.load.uploads:
        sent_s = sender.sent_s.get(upload.upload_id)
        heard_s = sender.heard_s.get(upload.upload_id)
        if upload.project in CUSTOMER_KEYS or sent_s is None or heard_s is None:
            continue
        during = any(each.began_s <= sent_s <= each.ended_s for each in outages)
        name = "while a store was away" if during else "otherwise"
        found[name].append(max(0.0, heard_s - sent_s))
    return {
        name: {
            "uploads": len(seconds),
            "median": round(statistics.median(seconds), 2),
            "longest": round(max(seconds), 2),
        }
        for name, seconds in found.items()
        if seconds
    }
