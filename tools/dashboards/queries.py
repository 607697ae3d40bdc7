"""Queries and panels that several dashboards share."""

from __future__ import annotations

from typing import Final

from tools.dashboards.model import Panel, Query, Row, Unit, Variable, stat

JOB: Final = 'job=~"$job"'
VHOST: Final = 'vhost=~"$vhost"'
VHOSTS: Final = Variable("vhost", "Virtual host", "rabbitmq_detailed_queue_consumers")


def rate(metric: str, labels: str = JOB, by: str = "") -> str:
    """How often a counter counts in a second, summed over processes, or over all but `by`."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{{{labels}}}[$__rate_interval]))"


def rates(metric: str, by: str, labels: str = JOB) -> tuple[Query, ...]:
    """The rate of a counter by one label. Values of it that did not occur are left out."""
    return (Query(f"{rate(metric, labels, by)} > 0", f"{{{{{by}}}}}"),)


def quantiles(recorded: str, labels: str) -> tuple[Query, ...]:
    """The median and two high quantiles of a recorded histogram."""
    return tuple(Query(quantile(q, recorded, labels), f"p{q * 100:.0f}") for q in (0.5, 0.9, 0.99))


def quantile(q: float, recorded: str, labels: str, by: str = "le") -> str:
    """A quantile of a recorded histogram; `by` are the labels that are kept."""
    return f"histogram_quantile({q:g}, sum by ({by}) ({recorded}{{{labels}}}))"


def queue(kind: str, names: str, by: str = "queue") -> str:
    """A recorded number of messages or consumers, for queues by a regular expression."""
    grouping = f" by ({by})" if by else ""
    return f'sum{grouping} (keyturn:queue_{kind}:max{{{VHOST},queue=~"{names}"}})'


FIRING: Final = stat(
    "Firing alerts",
    "Alerts of Keyturn that fire now, of all deployments. Alertmanager or Prometheus lists them.",
    "short",
    'count(ALERTS{alertname=~"Keyturn.*",alertstate="firing"}) or vector(0)',
    red_from=1,
)


def processes() -> Row:
    """What the chosen processes use of their machines."""
    return Row(
        "Processes",
        (
            _by_instance(
                "CPU",
                "Cores that each process uses. A process has one thread of work: near 1, add more "
                "processes.",
                "short",
                f"rate(process_cpu_seconds_total{{{JOB}}}[$__rate_interval])",
            ),
            _by_instance(
                "Memory",
                "Resident memory of each process. It does not grow with the number of objects.",
                "bytes",
                f"process_resident_memory_bytes{{{JOB}}}",
            ),
            _by_instance(
                "Open files",
                "Open files and connections of each process.",
                "short",
                f"process_open_fds{{{JOB}}}",
            ),
            Panel(
                "Versions",
                "The version of each process. During an upgrade there are two.",
                "none",
                (Query(f"sum by (job, instance, version) (keyturn_build_info{{{JOB}}})"),),
                "table",
                width=24,
                height=6,
            ),
        ),
    )


def _by_instance(title: str, description: str, unit: Unit, expr: str) -> Panel:
    return Panel(title, description, unit, (Query(expr, "{{instance}}"),))


def master_keys() -> Row:
    """Calls to an HSM or a KMS."""
    slow = f"sum by (provider, le) (rate(keyturn_kms_derivation_seconds_bucket{{{JOB}}}[5m]))"
    return Row(
        "Master keys in an HSM or a KMS",
        (
            Panel(
                "Calls to providers",
                "KEKs derived and calls that failed. A few when a process first serves a project, "
                "then one about every 45 minutes. Empty with local master keys only.",
                "ops",
                (
                    Query(
                        rate("keyturn_kms_derivations_total", JOB, "provider, outcome"),
                        "{{provider}} {{outcome}}",
                    ),
                ),
            ),
            Panel(
                "Duration of calls to providers (p99)",
                "Of the calls that returned a KEK. Above a second it is slow or throttles.",
                "s",
                (Query(f"histogram_quantile(0.99, {slow})", "{{provider}}"),),
            ),
            _by_instance(
                "KEKs in memory",
                "KEKs that each process has in memory, with those of local master keys. While they "
                "are there, the provider may be away.",
                "short",
                f"keyturn_kms_cached_keks{{{JOB}}}",
            ),
        ),
    )
