"""What an engine leaves mounted, and in which order it goes."""

from __future__ import annotations

from pathlib import Path

from tools.containers.engine import available_bytes, mounts_below

_MOUNTS = """\
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 21 254:0 /d /srv/k/engine/data rw - ext4 /dev/vda rw
41 40 0:50 / /srv/k/engine/data/overlay2/x/merged rw - overlay overlay rw
42 21 0:51 / /srv/k-other rw - tmpfs tmpfs rw
"""


def test_the_deepest_goes_first_and_neighbors_stay() -> None:
    assert mounts_below(Path("/srv/k"), _MOUNTS) == [
        "/srv/k/engine/data/overlay2/x/merged",
        "/srv/k/engine/data",
    ]


def test_the_memory_that_can_be_had_is_read_in_bytes() -> None:
    assert available_bytes("MemTotal: 9 kB\nMemAvailable:   2048 kB\n") == 2**21
    assert available_bytes("MemTotal: 9 kB\n") == 0
