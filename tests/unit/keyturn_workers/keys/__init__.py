"""Tests of the room `keys`."""
