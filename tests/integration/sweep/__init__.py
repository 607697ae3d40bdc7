"""Sweeps, rotations and what they find, on real servers with real processes (SPEC 8)."""
