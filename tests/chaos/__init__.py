"""Faults on real servers, seeded: `python -m tests.chaos`, and what the suite runs of it."""
