"""Which process of `make test` begins with which tests: the long ones first, a module in one.

pytest-xdist gives each process one run of the list, and later takes from the ends of the runs for
those that are idle. Here each run begins with its share of the long modules and ends with tests of
milliseconds. So no process has minutes of work left when the others have none, and the servers and
deployments of a module are started once.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

# Tests that share what takes long to start: a deployment with a console and a browser, a broker
# with TLS, a server that lists by paths. Each group is one run, named after its first place.
_SHARING: Final = (
    ("tests/integration/console",),
    ("tests/integration/tls",),
    (
        "tests/integration/upload/test_path_keys.py",
        "tests/integration/sweep/test_path_order.py",
        "tests/integration/cli/test_path_order.py",
        "tests/integration/storage/test_path_order.py",
    ),
)
_LONG: Final = ("tests/acceptance/", "tests/integration/", "tests/fuzz/")

# Seconds on two busy cores, roughly: only what takes far longer than the rest must be here.
_SECONDS: Final = {
    "tests/integration/console": 270,
    "tests/acceptance/test_sweep_crashes.py": 150,
    "tests/acceptance/test_sweep_workers.py": 130,
    "tests/integration/control/test_marks.py": 110,
    "tests/acceptance/test_chaos.py": 110,
    "tests/acceptance/test_rotation_under_load.py": 100,
    "tests/acceptance/test_providers.py": 100,
    "tests/acceptance/test_crashes.py": 90,
    "tests/unit/clients/test_typescript.py": 80,
    "tests/integration/sweep/test_master_keys.py": 70,
    "tests/acceptance/test_fair_shares.py": 70,
    "tests/acceptance/test_provider_outages.py": 70,
    "tests/integration/sweep/test_proofs.py": 60,
    "tests/integration/monitoring/test_dashboards.py": 60,
    "tests/acceptance/test_secrets_not_exposed.py": 60,
    "tests/integration/sweep/test_resume.py": 50,
    "tests/integration/test_servers.py": 50,
    "tests/integration/test_unsafe_storage.py": 50,
    "tests/integration/upload/test_path_keys.py": 50,
    "tests/integration/publisher/test_events.py": 50,
    "tests/integration/cli/test_audit.py": 50,
    "tests/fuzz/test_live.py": 50,
    "tests/acceptance/test_gateway_on_seaweedfs.py": 50,
    "tests/integration/storage/test_probe.py": 50,
    "tests/acceptance/test_broker_loss.py": 40,
    "tests/integration/status/test_reports.py": 40,
    "tests/integration/sweep/test_options.py": 40,
    "tests/acceptance/test_source_crashes.py": 40,
    "tests/integration/gateway/test_typescript_client.py": 40,
    "tests/integration/browser/test_page.py": 40,
    "tests/integration/control/test_deletion.py": 40,
    "tests/fuzz/test_requests.py": 40,
    "tests/integration/tls": 40,
    "tests/acceptance/test_ingest_crashes.py": 30,
    "tests/integration/upload/test_sources.py": 30,
    "tests/integration/test_read_only_root.py": 30,
    "tests/integration/test_health.py": 30,
    "tests/integration/test_start_during_outages.py": 30,
    "tests/integration/upload/test_retries.py": 30,
    "tests/integration/cli/test_status.py": 30,
    "tests/integration/cli/test_with_worker.py": 50,
    "tests/integration/deploy/test_rendering.py": 30,
    "tests/integration/cli/test_how_to.py": 50,
    "tests/integration/audit/test_trail.py": 30,
    "tests/integration/gateway/test_live.py": 30,
    "tests/acceptance/test_event_key_rotation.py": 30,
    "tests/integration/cli/test_dead.py": 30,
    "tests/integration/sweep/test_keyrings.py": 30,
    "tests/integration/control/test_enrollment.py": 30,
    "tests/integration/gateway/test_deletes.py": 30,
    "tests/integration/cli/test_foreign_events.py": 30,
}
_SECONDS_A_TEST: Final = 0.2
_SECONDS_AT_LEAST: Final = 10


def spread(names: list[str], processes: int) -> list[int]:
    """The order of tests for this many processes.

    Args:
        names: Their ids, in pytest's order.
        processes: Among which they are shared out.

    Returns:
        Indexes of `names`, each once.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        groups[_group(name)].append(index)
    long = [group for group in groups if group in _SECONDS or group.startswith(_LONG)]
    runs: list[list[int]] = [[] for _ in range(processes)]
    seconds = [0.0] * processes
    costs = {group: _cost(group, len(groups[group])) for group in long}
    for group in sorted(long, key=costs.__getitem__, reverse=True):
        least = seconds.index(min(seconds))
        seconds[least] += costs[group]
        runs[least] += groups.pop(group)
    short = [index for indexes in groups.values() for index in indexes]
    left = len(names)
    for number, run in enumerate(runs):
        # As pytest-xdist divides them.
        share = left // (processes - number)
        left -= share
        wanted = max(0, share - len(run))
        run.extend(short[:wanted])
        del short[:wanted]
    return [index for run in runs for index in run] + short


def apply(items: list[pytest.Item], processes: int) -> None:
    """Put collected tests into this order, in place."""
    order = spread([item.nodeid for item in items], processes)
    items[:] = [items[index] for index in order]


def _group(name: str) -> str:
    for group in _SHARING:
        if name.startswith(group):
            return group[0]
    return name.partition("::")[0]


def _cost(group: str, tests: int) -> float:
    return _SECONDS.get(group, max(_SECONDS_AT_LEAST, _SECONDS_A_TEST * tests))


def modules() -> Iterable[str]:
    """The files and folders that are named here."""
    return (*chain.from_iterable(_SHARING), *_SECONDS)
