"""The libraries as they are released still need `amqp.property_tolerance` (ADR 0013).

Each case runs in a separate process, which nothing has patched. A case that fails here is fixed
upstream: remove its part of `property_tolerance`, its line in ADR 0013, and the case.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from importlib.metadata import version

import pytest

_REPRODUCTION = """
import json, struct
from aio_pika import DeliveryMode
from aio_pika.message import decode_expiration
from pamqp import decode, encode

def written(value, name="n"):
    return decode.field_table(encode.field_table({name: value}))[1] == {name: value}

def timestamp_again(value):
    return encode.timestamp(decode.timestamp(value)[1]) == value

cases = {
    "a timestamp after the year 9999": lambda: decode.timestamp(struct.pack(">Q", 2**62)),
    "a timestamp after the year 2106": lambda: timestamp_again(struct.pack(">Q", 2**46 // 1000)),
    "a short string that is not UTF-8": lambda: decode.short_str(b"\\x01\\xff"),
    "a header of an unknown type": lambda: decode.field_table(struct.pack(">I", 3) + b"\\x01a?"),
    "an unknown delivery mode": lambda: DeliveryMode(3),
    "an expiration that is no number": lambda: decode_expiration("x"),
    "a header that is not UTF-8": lambda: written(b"\\xff"),
    "a double": lambda: written(0.1),
    "a double that is no float": lambda: written(1e300),
    "a header's name above 128 bytes": lambda: written("v", "n" * 129),
}
outcomes = {}
for name, case in cases.items():
    try:
        outcomes[name] = "changed" if case() is False else "read"
    except Exception as exc:
        outcomes[name] = type(exc).__name__
print(json.dumps(outcomes))
"""

_EXPECTED = {
    "a timestamp after the year 9999": "ValueError",
    "a timestamp after the year 2106": "changed",
    "a short string that is not UTF-8": "UnicodeDecodeError",
    "a header of an unknown type": "ValueError",
    "an unknown delivery mode": "ValueError",
    "an expiration that is no number": "ValueError",
    "a header that is not UTF-8": "TypeError",
    "a double": "changed",
    "a double that is no float": "OverflowError",
    "a header's name above 128 bytes": "changed",
}


@cache
def outcomes() -> dict[str, str]:
    """What the unpatched libraries do in each case."""
    command = [sys.executable, "-I", "-c", _REPRODUCTION]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, str] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize("case", list(_EXPECTED))
def test_the_released_libraries_still_fail(case: str) -> None:
    outcome = outcomes()[case]
    assert outcome != "read", (
        f"pamqp {version('pamqp')} and aio-pika {version('aio-pika')} read {case}: "
        "that part of keyturn_workers.amqp.property_tolerance is no longer needed"
    )
    assert outcome == _EXPECTED[case]
