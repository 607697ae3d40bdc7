"""Measure what the configured bucket does: `keyturn doctor`, and each worker's start (SPEC 10)."""

from keyturn_workers.storage.probe.runner import probe

__all__ = ["probe"]
