"""No core dump of a process that holds keys (SPEC 13).

A core dump is the memory of a process in a file: master keys, event keys and any plaintext in
flight. Called once by the console script, before it reads a setting.
"""

import ctypes
import resource
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h


def disable_core_dumps() -> None:
    """Let neither the kernel nor another process of the same user copy this one's memory.

    A limit of 0 bytes prevents core files, and child processes inherit it. A kernel that pipes core
    dumps into a program (`core_pattern` with `|`) ignores the limit, so on Linux the process is
    also marked as not dumpable. A debugger or profiler can then attach only as root
    (`CAP_SYS_PTRACE`). The process can still read its own `/proc`, so its metrics are unchanged.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # If it is refused, for instance by a seccomp filter, the limit is set nevertheless.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
