"""Tests of enrollments on real servers."""
