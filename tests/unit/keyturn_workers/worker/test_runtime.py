"""No core dump of a process that holds keys, while its own metrics go on (SPEC 13)."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from keyturn_workers.cli import app as app_module
from keyturn_workers.worker import runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# In a separate process: what it sets holds for the rest of that process's life.
_AFTERWARDS = """
import ctypes, os, resource
from keyturn_workers.worker.runtime import disable_core_dumps
from keyturn_workers.worker.metrics import Registry
if {uid} is not None:
    os.setgroups([])
    os.setgid({uid})
    os.setuid({uid})
disable_core_dumps()
print(resource.getrlimit(resource.RLIMIT_CORE))
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
registry = Registry()
registry.add_process()
print({{sample.name for family in registry.collect() for sample in family.samples}})
"""


def _afterwards(uid: int | None) -> list[str]:
    shown = subprocess.run(
        [sys.executable, "-c", _AFTERWARDS.format(uid=uid)],
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_DUMPABLE is Linux's")
@pytest.mark.parametrize("uid", [None, 65534], ids=["as it is", "as nobody"])
def test_neither_the_kernel_nor_a_process_of_the_same_user_may_copy_the_memory(
    uid: int | None,
) -> None:
    """The owner of `/proc/PID` becomes root; the process still reads its own, for its metrics."""
    if uid is not None and os.getuid() != 0:
        pytest.skip("only root becomes another user")
    limit, dumpable, names = _afterwards(uid)
    assert (limit, dumpable) == ("(0, 0)", "0")
    for name in ("process_open_fds", "process_resident_memory_bytes", "process_cpu_seconds_total"):
        assert f"'{name}'" in names


def test_every_command_forbids_them_before_it_reads_a_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    def note(what: str) -> Callable[..., None]:
        return lambda **_: order.append(what)

    monkeypatch.setattr(app_module, "disable_core_dumps", note("forbidden"))
    monkeypatch.setattr(app_module, "app", note("run"))
    app_module.main()
    assert order == ["forbidden", "run"]


def test_a_limit_alone_is_set_where_there_is_no_prctl(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("no prctl there"))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limit: limits.append((which, limit)))
    runtime.disable_core_dumps()
    assert limits == [(resource.RLIMIT_CORE, (0, 0))]


@pytest.fixture
def collector() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


@pytest.mark.slow
@pytest.mark.usefixtures("collector")
def test_what_was_loaded_at_the_start_is_left_out_of_collections() -> None:
    before = gc.get_freeze_count()
    runtime.reduce_garbage_collection()
    assert gc.get_freeze_count() > before + 1000
    assert gc.get_threshold()[0] == 50_000
    assert gc.isenabled()
