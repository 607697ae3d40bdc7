"""Unit tests of `tools.docs`."""
