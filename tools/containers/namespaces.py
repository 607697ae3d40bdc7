"""Mounts and a network of this process's own (Linux, as root).

What a private engine mounts, and each rule and bridge of its networks, then vanish with the last
process in them. Nothing on the machine changes, and no port is taken.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import socket
import struct
import subprocess
from pathlib import Path
from typing import Final

from tools.containers.engine import CannotRunError

_CLONE_NEWNS: Final = 0x0002_0000
_CLONE_NEWNET: Final = 0x4000_0000
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_IFREQ: Final = "16sh14x"
# All images, with what their builds leave, take 4 GB.
_MEMORY_BYTES: Final = 8 * 2**30
_PLENTY_BYTES: Final = 14 * 2**30


def leave_mounts() -> None:
    """From now on, what this process and its children mount is theirs alone.

    Raises:
        CannotRunError: the kernel refuses it.
    """
    _unshare(_CLONE_NEWNS, "mounts")
    done = subprocess.run(
        ["mount", "--make-rprivate", "/"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise CannotRunError(f"no mounts of its own here: {done.stderr.strip()}")


def leave_network() -> None:
    """From now on, this process and its children have a network with only a loopback device.

    Raises:
        CannotRunError: the kernel refuses it.
    """
    _unshare(_CLONE_NEWNET, "network")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack(_IFREQ, b"lo", 0))
        _, flags = struct.unpack(_IFREQ, answer)
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack(_IFREQ, b"lo", flags | _IFF_UP))


def keep_in_memory(folder: Path) -> bool:
    """Mount memory at a new folder if there is plenty; on a slow disk images take minutes more.

    Returns:
        Whether it is in memory.
    """
    if available_bytes(Path("/proc/meminfo").read_text()) < _PLENTY_BYTES:
        return False
    options = f"size={_MEMORY_BYTES},mode=0700"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def available_bytes(meminfo: str) -> int:
    """What `/proc/meminfo` says can be had; 0 if it does not."""
    found = re.search(r"^MemAvailable: *(\d+) kB$", meminfo, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def mounts_below(folder: Path, mountinfo: str) -> list[str]:
    """What is mounted at or below a folder, the deepest first."""
    points = [line.split()[4] for line in mountinfo.splitlines()]
    below = [point for point in points if Path(point).is_relative_to(folder)]
    return sorted(below, key=len, reverse=True)


def unmount_below(folder: Path) -> None:
    """Unmount what an engine left there, so that the folder can be removed."""
    for point in mounts_below(folder, Path("/proc/self/mountinfo").read_text()):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)


def _unshare(flag: int, what: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flag) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise CannotRunError(f"no {what} of its own here: {reason}")
