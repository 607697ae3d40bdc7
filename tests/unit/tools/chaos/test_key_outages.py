"""Outages of customer keys in a chaos run: each lasts until it was noticed, and ends."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from keyturn.crypto import Secret, record_kek, seal_record, to_base64
from keyturn.identifiers import keyring_s3_key
from tools.chaos import key_outages as outages
from tools.chaos.gateway_readers import GatewayReaders
from tools.chaos.key_outages import OTHERS, CustomerKeyStore, CustomerSecret, KeyOutages, waits
from tools.chaos.plan import Action, Load, Plan, make_plan
from tools.chaos.publisher import EventLog

SEED = 7
MASTERS = {"m1": bytes(32), "m2": bytes(range(32))}


def _retry(key: str, code: str = "customer_key_refused") -> str:
    line = {"code": code, "detail": f"kms/{key}: no", "event": "retry scheduled"}
    return json.dumps(line, separators=(",", ":"))


class _Run:
    """A run around an outage: workers that put off what is sent to `fir`, while its key is away."""

    def __init__(self, *, noticed: bool = True, others_go_on: bool = True) -> None:
        self.noticed, self.others_go_on = noticed, others_go_on
        self.done: list[str] = []
        self.early: list[str] = []
        self.log = SimpleNamespace(lines=[_retry("fir-1")])  # from before
        worker = SimpleNamespace(role="upload", logs=[self.log])
        supervisor: Any = SimpleNamespace(processes={"upload-1": worker})
        plan = make_plan(SEED, 100)
        sender: Any = SimpleNamespace(plan=plan, send_early=self._send_early)
        nothing: Any = None
        self.readers = GatewayReaders(nothing, "", SEED)
        self.events = EventLog()
        store: Any = SimpleNamespace(
            take_away=lambda kind, project: self.done.append(f"{kind} of {project}"),
            give_back=lambda kind, project: self.done.append(f"no {kind} of {project}"),
        )
        self.outages = KeyOutages(store, supervisor, sender, self.events, self.readers)

    async def _send_early(self, project: str) -> None:
        self.early.append(project)
        if project == "fir":
            assert self.readers.refused_until == {"fir": float("inf")}
            self.log.lines += [_retry("fir-1", "kms_unavailable"), _retry("gorse-1")]
            if self.noticed:
                self.log.lines.append(_retry("fir-2"))
        elif self.others_go_on:
            stored: Any = SimpleNamespace(type="upload.stored", project=project)
            self.events.events.setdefault(project, []).append(stored)

    async def take_away(self) -> None:
        await self.outages.take_away(Action(1, "customer key away", "fir", kind="key denied"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_LOOK_S": 0.001, "_PAUSE_S": 0.001, "_HELD_S": 0.3}.items():
        monkeypatch.setattr(outages, name, value)


async def test_a_key_is_away_until_that_is_noticed_and_others_went_on() -> None:
    run = _Run()
    await run.take_away()
    (outage,) = run.outages.outages
    assert (outage.put_off, outage.others) == (1, OTHERS)
    assert run.early[0] == "fir"
    assert len(set(run.early)) == 2
    assert run.done == ["key denied of fir", "no key denied of fir"]
    assert outage.began_s < outage.ended_s < run.readers.refused_until["fir"] < float("inf")


@pytest.mark.parametrize(
    ("what", "found"),
    [({"noticed": False}, (0, 0)), ({"others_go_on": False}, (1, 0))],
)
async def test_what_is_not_noticed_ends_all_the_same(
    what: dict[str, bool], found: tuple[int, int]
) -> None:
    run = _Run(**what)
    await run.take_away()
    (outage,) = run.outages.outages
    assert (outage.put_off, outage.others) == found
    assert run.done[-1] == "no key denied of fir"


def test_waits_are_of_others_and_by_the_time_of_sending() -> None:
    plan = make_plan(SEED, 100)
    first, second, third, *_ = [u for u in plan.load.uploads if u.project == "amber"]
    locked = next(u for u in plan.load.uploads if u.project == "fir")
    sender: Any = SimpleNamespace(
        plan=Plan(SEED, 4, Load((first, second, third, locked)), ()),
        sent_s={first.upload_id: 1, second.upload_id: 11, locked.upload_id: 11},
        heard_s={first.upload_id: 3, second.upload_id: 12, locked.upload_id: 90},
    )
    outage = outages.KeyOutage("store stopped", "fir", 10, 20)
    assert waits(sender, [outage]) == {
        "while a store was away": {"uploads": 1, "median": 1, "longest": 1},
        "otherwise": {"uploads": 1, "median": 2, "longest": 2},
    }


def test_secrets_are_those_of_the_keyrings_of_each_generation() -> None:
    def record(master: str, **fields: Any) -> bytes:
        key = keyring_s3_key("fir")
        kek = record_kek(MASTERS[master], "fir")
        sealed = seal_record(kek, key, json.dumps(fields).encode())
        return json.dumps({"master_key": master, "sealed": to_base64(sealed)}).encode()

    def call(method: str, path: str, body: dict[str, str]) -> Any:
        assert (method, path) == ("POST", "transit/decrypt/fir-1")
        assert body["ciphertext"] == "vault:v1:x"
        return {"data": {"plaintext": to_base64(b"s" * 32)}}

    openbao: Any = SimpleNamespace(call=call)
    key = {"key": "fir-1", "secret_id": "0" * 16, "wrapped": "vault:v1:x"}
    records = [record("m1"), record("m2", customer_key=key)]
    found = CustomerKeyStore(openbao, "token").secrets("test", "fir", records, MASTERS)
    assert found == [None, CustomerSecret("0" * 16, Secret(b"s" * 32))]
