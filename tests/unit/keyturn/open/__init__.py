"""Tests of keyturn.open."""
