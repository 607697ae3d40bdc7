"""Unit tests of `workers.control`."""
