"""Tests of enrolments on real servers."""
