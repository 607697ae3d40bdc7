"""Prints the capabilities that a worker in this process would assume."""

from __future__ import annotations

import asyncio
import sys

from keyturn_workers.settings import WorkerSettings
from keyturn_workers.worker import process

if __name__ == "__main__":
    settings = WorkerSettings.model_construct()
    print(asyncio.run(process._measure_storage(settings)), file=sys.stderr)
