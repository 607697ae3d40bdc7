"""Sweeps and rotations on real servers with real processes (SPEC 8)."""
