"""Metrics of the calls to the providers of master keys (SPEC 11, 13)."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from keyturn_workers.master_keys.operator_keys import OperatorKeys

_OUTCOMES: Final = ("derived", "unavailable")
_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class KmsMetrics:
    """What one process asks of providers. No label names a project, a key or an id."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._derivations = Counter(
            "keyturn_kms_derivations_total",
            "Calls to providers of master keys, by provider and outcome",
            ("provider", "outcome"),
            registry=registry,
        )
        self._seconds = Histogram(
            "keyturn_kms_derivation_seconds",
            "How long a provider took for one derivation",
            ("provider",),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._cached = Gauge(
            "keyturn_kms_cached_keks",
            "Derived KEKs in memory, those of local master keys included",
            registry=registry,
        )

    def track(self, keys: OperatorKeys) -> None:
        """Export how many KEKs are in memory, at each scrape."""
        self._cached.set_function(lambda: keys.cached_keks)

    def initialize(self, provider: str) -> None:
        """Export the series of a provider from the first scrape on."""
        for outcome in _OUTCOMES:
            self._derivations.labels(provider, outcome)
        self._seconds.labels(provider)

    def observe(self, provider: str, *, derived: bool, seconds: float) -> None:
        """Count one call."""
        self._derivations.labels(provider, _OUTCOMES[0] if derived else _OUTCOMES[1]).inc()
        if derived:
            self._seconds.labels(provider).observe(seconds)
