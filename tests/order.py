"""Which process of `make test` begins with which tests: the long ones first, a module in one.

pytest-xdist gives each process one run of the list, and later takes from the ends of the runs for
those that are idle. Here each run begins with its share of the long modules and ends with tests of
milliseconds. So no process has minutes of work left when the others have none, and the servers and
deployments of a module are started once.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

# Its tests share one deployment, with a console and a browser.
_WHOLE: Final = "tests/integration/console"
_LONG: Final = ("tests/acceptance/", "tests/integration/", "tests/fuzz/")

# Seconds on two busy cores, roughly: only what takes far longer than the rest must be here.
_SECONDS: Final = {
    _WHOLE: 600,
    "tests/acceptance/test_sweep_crashes.py": 450,
    "tests/acceptance/test_providers.py": 390,
    "tests/acceptance/test_sweep_workers.py": 270,
    "tests/acceptance/test_secrets_not_exposed.py": 220,
    "tests/acceptance/test_rotation_under_load.py": 190,
    "tests/integration/amqp/test_permissions.py": 150,
    "tests/acceptance/test_install.py": 100,
    "tests/acceptance/test_event_key_rotation.py": 95,
    "tests/acceptance/test_files.py": 95,
    "tests/integration/cli/test_key_is_gone.py": 95,
    "tests/acceptance/test_chaos.py": 90,
    "tests/acceptance/test_shutdown.py": 90,
    "tests/integration/cli/test_status.py": 75,
    "tests/integration/cli/test_foreign_events.py": 70,
    "tests/integration/sweep/test_master_keys.py": 70,
    "tests/acceptance/test_load.py": 70,
    "tests/integration/test_read_only_root.py": 65,
    "tests/integration/test_metrics.py": 65,
    "tests/unit/clients/test_typescript.py": 65,
}
_SECONDS_A_TEST: Final = 2
_SECONDS_AT_MOST: Final = 60


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
    seconds = [0] * processes
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
    return _WHOLE if name.startswith(f"{_WHOLE}/") else name.partition("::")[0]


def _cost(group: str, tests: int) -> int:
    return _SECONDS.get(group, min(_SECONDS_AT_MOST, _SECONDS_A_TEST * tests))


def modules() -> Iterable[str]:
    """The files and folders that are named here."""
    return _SECONDS
