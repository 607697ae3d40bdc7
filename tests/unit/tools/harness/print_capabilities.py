"""Prints the capabilities that a worker in this process would assume."""

from __future__ import annotations

import asyncio
import sys

from keyturn_workers.pipeline.worker import process
from keyturn_workers.process.settings import WorkerSettings

if __name__ == "__main__":
    settings = WorkerSettings.model_construct()
    print(asyncio.run(process._measure_storage(settings)), file=sys.stderr)
