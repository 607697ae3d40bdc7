"""Bringing objects to the desired state, on real servers (SPEC 8.2)."""
