"""The bench of master keys that are held elsewhere: its arithmetic, and what it must not count."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from keyturn.crypto import Secret, from_base64, to_base64
from keyturn_workers.master_keys.metrics import KmsMetrics
from keyturn_workers.master_keys.operator_keys import KekLimits, OperatorKeys
from keyturn_workers.master_keys.port import Derivation, KeyDescription
from keyturn_workers.settings import KmsSettings
from tools.bench.__main__ import _arguments, _measurements
from tools.bench.kms import derivations, master_key_sweep, provider_calls, providers, tenant_uploads
from tools.bench.kms.provider_process import ProviderSettings, derive
from tools.bench.processes import BenchError
from tools.bench.uploads import Rate
from tools.harness.deployment import Deployment
from tools.servers import S3Server
from tools.servers.packages import MissingPackagesError

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from tools.bench.figures import Row

_CACHE_S = 100.0


def _by_figure(rows: list[Row]) -> dict[str, Row]:
    found = {row.figure: row for row in rows}
    assert len(found) == len(rows)
    return found


def test_kms_measures_every_provider_and_uploads_with_two() -> None:
    given = _arguments(["--only", "kms"])
    assert [name for name, _ in _measurements(given)] == [
        "derivations by local",
        "derivations by pkcs11",
        "derivations by awskms",
        "derivations by vault",
        "uploads with pkcs11 on ceph",
        "uploads with vault on ceph",
    ]


def test_a_rate_is_derivations_by_the_clock_and_percentiles_are_milliseconds() -> None:
    found = derivations.Found()
    found.add({"wall_s": 0.5, "latencies_s": [n / 1000 for n in range(1, 102)]})
    rate, p50, p99 = derivations.rows("vault", 16, found)
    assert rate.ours.values == (202.0,)
    assert p50.ours.values == pytest.approx((51.0,))
    assert p99.ours.values == pytest.approx((100.0,))
    assert {row.server for row in (rate, p50, p99)} == {"vault"}


async def test_only_what_was_asked_for_is_timed() -> None:
    keys = json.dumps({providers.MASTER_KEY: to_base64(bytes(32))})
    report = await derive(ProviderSettings.model_validate({"master_keys": keys}), 30, at_once=4)
    assert len(report["latencies_s"]) == 30
    assert 0 < max(report["latencies_s"]) <= report["wall_s"]


def test_calls_are_counted_whatever_became_of_them() -> None:
    registry = CollectorRegistry()
    metrics = KmsMetrics(registry)
    metrics.initialize("vault")
    assert provider_calls.count_calls(generate_latest(registry).decode()) == 0
    for derived in (True, True, False):
        metrics.observe("vault", derived=derived, seconds=0.5)
    metrics.observe("pkcs11", derived=True, seconds=0.5)
    assert provider_calls.count_calls(generate_latest(registry).decode()) == 4


def test_a_million_uploads_need_the_first_derivations_and_all_that_fall_due() -> None:
    def calls(uploads_per_s: float, **more: Any) -> float:
        return provider_calls.per_million(
            first=4, refresh=1, projects=1000, uploads_per_s=uploads_per_s, **more
        )

    assert calls(500) == 4000  # over in 2,000 s, before the first ones are due at 2,700 s
    assert calls(100) == 7000  # in 10,000 s they are due three times
    assert calls(500, cache_s=60) == 48_000  # 44 times in 2,000 s
    assert calls(1_000_000 / provider_calls.DAY_S) == 36_000


class _CountedKey:
    """A master key that notes the time of each call."""

    provider = "vault"

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calls_s: list[float] = []
        self.called = asyncio.Event()

    async def derive(self, info: bytes) -> Derivation:
        del info
        self.calls_s.append(self.now_s)
        self.called.set()
        return Derivation(Secret(bytes(32)))

    async def describe(self) -> KeyDescription:
        return KeyDescription("vault", "vault:")

    async def aclose(self) -> None:
        pass


async def test_the_extrapolation_knows_when_keks_are_derived_again() -> None:
    key = _CountedKey()
    limits = KekLimits(_CACHE_S, 2 * _CACHE_S)
    keys = OperatorKeys({"m1": key}, limits=limits, clock_s=lambda: key.now_s)
    await keys.admin_kek("m1", "acme")
    assert key.calls_s == [0.0, 0.0]
    key.called.clear()
    for share in (provider_calls.REFRESH_AT - 0.01, provider_calls.REFRESH_AT):
        key.now_s = share * _CACHE_S
        await keys.admin_kek("m1", "acme")
        await asyncio.sleep(0)  # one that was started begins
    async with asyncio.timeout(10):
        await key.called.wait()
    assert key.calls_s == [0.0, 0.0, provider_calls.REFRESH_AT * _CACHE_S]
    await keys.aclose()


def test_the_extrapolation_has_the_default_cache_time() -> None:
    assert KmsSettings.model_fields["kms_cache_s"].default == provider_calls.CACHE_S


@pytest.mark.parametrize("projects", [1, 200, 1000, 10_000])
def test_two_passes_have_time_before_keks_are_too_old(projects: int) -> None:
    last_quarter_s = (1 - provider_calls.REFRESH_AT) * provider_calls.refresh_cache_s(projects)
    assert last_quarter_s >= max(7.5, projects / 50)


def test_calls_are_shown_per_project_and_per_upload() -> None:
    rows = _by_figure(
        provider_calls.rows(
            "vault", projects=10, cold=[40, 41, 60], warm=[0, 0, 5], refresh=10, warm_per_s=100
        )
    )
    assert rows["provider calls per project, cold"].ours.values == (4.0, 4.1, 6.0)
    assert rows["provider calls per upload, warm"].ours.values == (0.0, 0.0, 0.5)
    assert rows["provider calls per project, KEKs due"].ours.values == (1.0,)
    figure = "provider calls per 10^6 uploads, 10 projects, extrapolated"
    assert rows[f"{figure}, at the warm rate"].ours.values == pytest.approx((71.0,))
    assert rows[f"{figure}, in one day"].ours.values == pytest.approx((361.0,))


def _side(cold_per_s: float, warm_per_s: float) -> tenant_uploads.Side:
    cold, warm = (
        [tenant_uploads.Pass(Rate(per_s, 1000 / per_s), 0, 0.0, 1.0)]
        for per_s in (cold_per_s, warm_per_s)
    )
    return tenant_uploads.Side(cold, warm)


def test_each_side_is_compared_with_the_local_key_in_the_same_pass() -> None:
    sides = tenant_uploads.Sides(_side(400, 500), _side(100, 450), _side(200, 1))
    rows = _by_figure(tenant_uploads.rows("ceph", "vault", 1000, sides))
    figure = "4 KiB uploads, 1,000 projects, vault"
    ratios = {name: row.ratios.median for name, row in rows.items() if row.ratios is not None}
    assert ratios == pytest.approx(
        {
            f"{figure}, cold cache": 0.25,
            f"{figure}, cold cache, CPU": 0.25,
            f"{figure}, warm cache": 0.9,
            f"{figure}, warm cache, CPU": 0.9,
            f"{figure}, cold cache, no rate limit": 0.5,
            f"{figure}, cold cache, no rate limit, CPU": 0.5,
        }
    )


def test_a_worker_finds_the_providers_key_and_no_other() -> None:
    deployment = Deployment("amqp://127.0.0.1:1/", S3Server.private(1, "ceph"), "bucket")
    provider = providers.Provider("vault", "vault:x", {"KEYTURN_VAULT_TOKEN_FILE": "f"})
    env = providers.worker_env(deployment, provider, HEALTH_PORT="7")
    assert json.loads(env["KEYTURN_MASTER_KEYS"]) == {"m1": "vault:x"}
    assert (env["KEYTURN_VAULT_TOKEN_FILE"], env["KEYTURN_HEALTH_PORT"]) == ("f", "7")
    moved = provider.settings("m2", {"m1": "local"})
    assert json.loads(moved["KEYTURN_MASTER_KEYS"]) == {"m1": "local", "m2": "vault:x"}


async def test_the_local_side_holds_the_deployments_own_key() -> None:
    async with providers.open_provider("local", bytes(range(32))) as provider:
        assert from_base64(provider.key) == bytes(range(32))
        assert provider.key not in repr(provider)


async def test_a_provider_that_cannot_be_installed_is_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def missing(stack: AsyncExitStack, master_key: bytes) -> providers.Provider:
        del stack, master_key
        raise MissingPackagesError("softhsm2")

    monkeypatch.setitem(providers.OPENING, "pkcs11", missing)
    with pytest.raises(BenchError, match="softhsm2"):
        async with providers.open_provider("pkcs11", bytes(32)):
            pass


_END: dict[str, Any] = {
    "type": "sweep.completed",
    "clean": True,
    "objects": 5,
    "current": 5,
    "failed": 0,
    "rewrapped": 5,
}


@pytest.mark.parametrize(
    "change",
    [
        {"type": "sweep.failed"},
        {"clean": False},
        {"objects": 4},
        {"current": 4},
        {"failed": 1},
        {"rewrapped": 4},
    ],
)
def test_a_sweep_that_did_not_move_everything_is_no_measurement(change: dict[str, Any]) -> None:
    master_key_sweep.check(_END, 5)
    with pytest.raises(BenchError, match="did not end clean"):
        master_key_sweep.check(_END | change, 5)


def test_calls_of_a_sweep_are_those_of_both_workers() -> None:
    found = master_key_sweep.Found(wall_s=12.0, control_calls=20, sweep_calls=400)
    rows = master_key_sweep.rows("ceph", "vault", 100, found)
    assert [row.ours.values for row in rows] == [(420,), (0.2,), (4.0,), (12.0,)]
