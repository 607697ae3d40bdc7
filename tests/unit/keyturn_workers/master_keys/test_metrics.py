"""Metrics of the calls to the providers of master keys."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from keyturn_workers.master_keys.metrics import KmsMetrics
from tools.harness.local_keys import operator_keys


def _value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"keyturn_kms_{name}", labels)


async def test_calls_are_counted_by_provider_and_outcome() -> None:
    registry = CollectorRegistry()
    metrics = KmsMetrics(registry)
    metrics.initialize("vault")
    assert _value(registry, "derivations_total", provider="vault", outcome="unavailable") == 0
    metrics.observe("vault", derived=True, seconds=0.25)
    metrics.observe("vault", derived=False, seconds=0)
    assert _value(registry, "derivations_total", provider="vault", outcome="derived") == 1
    assert _value(registry, "derivations_total", provider="vault", outcome="unavailable") == 1
    assert _value(registry, "derivation_seconds_sum", provider="vault") == 0.25


async def test_the_keks_in_memory_are_counted() -> None:
    registry = CollectorRegistry()
    keys = operator_keys({})
    KmsMetrics(registry).track(keys)
    assert _value(registry, "cached_keks") == 0
