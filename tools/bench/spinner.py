"""`python -m tools.bench.spinner`: takes all the CPU time that it is given, until it is ended."""

from __future__ import annotations

import sys
from typing import Final

SPINNING: Final = "spinning"


def spin() -> None:
    """Take CPU time, and nothing else."""
    print(SPINNING, file=sys.stderr, flush=True)
    while True:
        pass


if __name__ == "__main__":
    spin()
