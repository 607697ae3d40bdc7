"""Unit tests of `make doctor`."""
