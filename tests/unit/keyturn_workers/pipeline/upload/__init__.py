"""Unit tests of the upload worker (SPEC 7)."""
