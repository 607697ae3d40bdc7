"""No core dump of a process that holds keys (SPEC 13).

A core dump is the whole memory of a process in a file: master keys, event keys and whatever
plaintext was under way. Called once by the console script, before it reads a setting.
"""

import ctypes
import resource
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h


def forbid_core_dumps() -> None:
    """Let neither the kernel nor another process of the same user copy this one's memory.

    The limit of 0 bytes keeps a core file from being written, and processes that this one starts
    inherit it. A kernel that pipes core dumps into a program (`core_pattern` with `|`) heeds no
    limit; there, on Linux, the process is also marked as not to be dumped. Then a debugger or
    profiler attaches as root alone (`CAP_SYS_PTRACE`). The process still reads its own `/proc`,
    so its metrics are unchanged.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # Where it is refused, by a seccomp filter say, the limit has been set all the same.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
