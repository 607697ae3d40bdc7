"""A registry of Prometheus metrics, with those that all processes export (SPEC 13)."""

from collections.abc import Iterator
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    GCCollector,
    Metric,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder


class Registry(CollectorRegistry):
    """Omits the creation time of each series: it would double them, and no alert needs it."""

    def __init__(self) -> None:
        super().__init__(auto_describe=False)

    def add_process(self) -> None:
        """Export the process's own metrics too: version, memory, CPU, open files, Python."""
        build = Gauge(
            "keyturn_build_info", "1, with the version of Keyturn.", ["version"], registry=self
        )
        build.labels(version("keyturn-workers")).set(1)
        ProcessCollector(registry=self)
        PlatformCollector(registry=self)
        GCCollector(registry=self)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All samples in the format that an `Accept` header requests, and its content type.

        Prometheus text 0.0.4 by default.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self), content_type

    def collect(self) -> Iterator[Metric]:
        """All metrics, without their creation times."""
        for metric in super().collect():
            metric.samples = [each for each in metric.samples if not each.name.endswith("_created")]
            yield metric
