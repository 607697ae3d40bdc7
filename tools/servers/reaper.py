"""Runs one server, and ends it with all its descendants when the owner process dies.

For the private servers of tests, demo and bench. It is a separate script, run as
`python -I -S reaper.py` with the standard library only, because it must notice when its owner is
killed with SIGKILL and cannot clean up itself.

The owner holds the other end of standard input. `end` requests a graceful shutdown, `kill` an
immediate one. End of file without either means that the owner died; then the scratch folder is
removed too. The reaper is a child subreaper, so that detached descendants of the server (such as
Erlang's epmd) become its children.

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


def _die_with_reaper() -> None:
    """Run in the child before exec, so that the server dies if the reaper is killed."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    """The process ids of the direct children of `pid`, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The command's name is in parentheses and may itself contain spaces and parentheses.
        if int(stat.rpartition(")")[2].split()[1]) == pid:
            found.append(int(entry.name))
    return found


def kill_descendants() -> None:
    """Kill and reap until no child is left; orphans are reparented to this process."""
    while True:
        for pid in children_of(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


class _Reaper:
    """Waits for the owner's command, the owner's death, or the server's exit."""

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
        """Return `end`, `kill`, `orphaned` or `exited`."""
        while True:
            if self._server.poll() is not None:
                return "exited"
            if self._signalled:
                return "end"
            # Also if a forked sibling of the owner still holds the pipe open.
            if os.getppid() != self._owner:
                return "orphaned"
            readable, _, _ = select.select([0], [], [], _POLL_S)
            if readable:
                word = os.read(0, 16).strip()
                return word.decode() if word in {b"end", b"kill"} else "orphaned"

    def end(self, word: str) -> int:
        """End the server and all its descendants; returns its exit status."""
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
    """Parse the command line, run the server, end it, and exit with its status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--grace-s", type=float, required=True)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    server = subprocess.Popen(
        options.command,
        stdin=subprocess.DEVNULL,
        preexec_fn=_die_with_reaper,  # noqa: PLW1509 - this process has one thread
        start_new_session=True,
    )
    reaper = _Reaper(server, options.grace_s)
    word = reaper.wait()
    status = reaper.end(word)
    if word == "orphaned":
        shutil.rmtree(options.scratch, ignore_errors=True)
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
