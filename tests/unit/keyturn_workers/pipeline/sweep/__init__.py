"""Unit tests of sweeps: pure decisions, and records in memory."""
