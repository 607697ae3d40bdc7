"""Tests of the workers' traces."""
