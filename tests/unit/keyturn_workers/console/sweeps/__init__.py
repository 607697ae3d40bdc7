"""Tests of the pages of sweeps, master keys and actions."""
