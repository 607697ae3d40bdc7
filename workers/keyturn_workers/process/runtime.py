"""Settings of kernel and interpreter for a process that holds keys (SPEC 7, 9, 13).

No core dumps: such a file has the process's memory, with master keys, event keys and any
plaintext in flight. And a serving process collects garbage less often.
"""

import ctypes
import gc
import resource
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h
_GC_THRESHOLD: Final = 50_000


def disable_core_dumps() -> None:
    """Let neither the kernel nor another process of the same user copy this one's memory.

    Called once by the console script, before it reads a setting.

    A limit of 0 bytes prevents core files, and child processes inherit it. A kernel that pipes core
    dumps into a program (`core_pattern` with `|`) ignores the limit, so on Linux the process is
    also marked as not dumpable. A debugger or profiler can then attach only as root
    (`CAP_SYS_PTRACE`). The process can still read its own `/proc`, so its metrics are unchanged.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # If this is refused, for instance by a seccomp filter, the limit is set nevertheless.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def reduce_garbage_collection() -> None:
    """Exclude objects loaded at start from collections, and collect less often.

    Called once, after all permanent objects are loaded. A request's objects are freed by their
    reference counts, and few cycles are left. With Python's threshold of 700 objects a busy
    process would collect hundreds of times a second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
