"""Faults on real servers, seeded: `python -m tools.chaos`, and what the suite runs of it."""
