"""`python -m tools.bench.spinner`: uses all the CPU time that it gets, until it is killed."""

from __future__ import annotations

import sys
from typing import Final

SPINNING: Final = "spinning"


def spin() -> None:
    """Use CPU time, and do nothing else."""
    print(SPINNING, file=sys.stderr, flush=True)
    while True:
        pass


if __name__ == "__main__":
    spin()
