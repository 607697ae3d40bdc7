"""Runs one server and outlives nothing: when its owner goes, so does every process below it.

For the private servers of tests, demo and bench. It is a script of its own, run as
`python -I -S guard.py` with the standard library alone, because it must notice the death of a
Python process that was killed with SIGKILL and could clean up nothing itself.

How it knows: the owner holds the other end of standard input. `end` on it means a graceful end,
`kill` an immediate one; end of file without either means that the owner died, and then the
scratch folder goes too. It is a child subreaper, so that what the server started and detached
(Erlang's epmd, say) becomes its own child and is found.

It must never signal a process that is not its own descendant.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.5


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _die_with_guard() -> None:
    """Runs in the child before exec: should the guard itself be killed, its server goes too."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    """The ids of the direct children of `pid`, read from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The command's name stands in parentheses and may itself hold spaces and parentheses.
        if int(stat.rpartition(")")[2].split()[1]) == pid:
            found.append(int(entry.name))
    return found


def kill_descendants() -> None:
    """Kill and reap until no child is left; orphans arrive as children, being reparented here."""
    while True:
        for pid in children_of(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


class _Guard:
    """Waits for the owner's word, for the owner's death, or for the server's own end."""

    def __init__(self, server: subprocess.Popen[bytes], grace_s: float) -> None:
        self._server = server
        self._grace_s = grace_s
        self._owner = os.getppid()
        self._signalled = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._signalled = True

    def wait(self) -> str:
        """Returns `end`, `kill`, `orphaned` or `exited`."""
        while True:
            if self._server.poll() is not None:
                return "exited"
            if self._signalled:
                return "end"
            # Also where some forked sibling of the owner still holds the pipe open.
            if os.getppid() != self._owner:
                return "orphaned"
            readable, _, _ = select.select([0], [], [], _POLL_S)
            if readable:
                word = os.read(0, 16).strip()
                return word.decode() if word in {b"end", b"kill"} else "orphaned"

    def end(self, word: str) -> int:
        """Ends the server and everything below it; returns its exit status."""
        if word == "end":
            self._server.terminate()
            deadline = time.monotonic() + self._grace_s
            while self._server.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
        if self._server.poll() is None:
            self._server.kill()
            self._server.wait()
        kill_descendants()
        return self._server.returncode


def main() -> NoReturn:
    """Parses the command line, runs the server, ends it, exits with its status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--grace-s", type=float, required=True)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    server = subprocess.Popen(
        options.command,
        stdin=subprocess.DEVNULL,
        preexec_fn=_die_with_guard,  # noqa: PLW1509 - this process has one thread
        start_new_session=True,
    )
    guard = _Guard(server, options.grace_s)
    word = guard.wait()
    status = guard.end(word)
    if word == "orphaned":
        shutil.rmtree(options.scratch, ignore_errors=True)
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
