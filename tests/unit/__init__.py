"""Tests without a network."""
