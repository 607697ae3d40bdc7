"""Tests of bad and repeated uploads on real servers."""
