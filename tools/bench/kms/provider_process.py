"""One process that uses a master key: `python -m tools.bench.kms.provider_process import|derive`.

The key is `m1` of `KEYTURN_MASTER_KEYS`. `import` reads a PRK in base64 from standard input.
`derive` derives KEKs and prints the time of each. No bounds are applied: they would be what is
measured. A separate process, because modules and clients are configured by the environment.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from keyturn.crypto import Secret, admin_kek_info, from_base64
from keyturn_workers.master_keys.providers import import_master_key, open_master_key
from keyturn_workers.settings import KmsSettings, MasterKeys
from tools.bench.kms.providers import MASTER_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyturn_workers.master_keys.port import MasterKey

# For each of those at once, so that every connection and every session is open.
_WARM = 8


class ProviderSettings(KmsSettings):
    """The master keys, and how their providers are reached."""

    master_keys: MasterKeys


async def derive(settings: ProviderSettings, count: int, at_once: int) -> dict[str, Any]:
    """Derive `count` KEKs of different projects, `at_once` at a time.

    Returns:
        How long all took, and each, in seconds.
    """
    key = open_master_key(settings.master_keys[MASTER_KEY], settings)
    try:
        await _derive_all(key, "warm", _WARM * at_once, at_once)
        began_s = time.perf_counter()
        latencies_s = await _derive_all(key, "bench", count, at_once)
        return {"wall_s": time.perf_counter() - began_s, "latencies_s": latencies_s}
    finally:
        await key.aclose()


async def _derive_all(key: MasterKey, prefix: str, count: int, at_once: int) -> list[float]:
    latencies_s: list[float] = []

    async def some(numbers: Iterable[int]) -> None:
        for number in numbers:
            info = admin_kek_info(f"{prefix}-{number}")
            began_s = time.perf_counter()
            await key.derive(info)
            latencies_s.append(time.perf_counter() - began_s)

    numbers = iter(range(count))
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(some(numbers))
    return latencies_s


def main(argv: list[str]) -> None:
    """Do what was asked, and print the result as JSON."""
    parser = argparse.ArgumentParser(description="Use one master key.")
    parser.add_argument("what", choices=["import", "derive"])
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=1)
    given = parser.parse_args(argv)
    settings = ProviderSettings.read()
    if given.what == "import":
        prk = Secret(from_base64(sys.stdin.read()))
        asyncio.run(import_master_key(settings.master_keys[MASTER_KEY], settings, prk))
        print(json.dumps({}))
    else:
        print(json.dumps(asyncio.run(derive(settings, given.count, given.at_once))))


if __name__ == "__main__":
    main(sys.argv[1:])
