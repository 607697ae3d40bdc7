"""Unit tests of the uploader (SPEC 7)."""
