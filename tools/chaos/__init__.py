"""Seeded fault injection on real servers: `python -m tools.chaos`, also run by the tests."""
