"""Tests of the operator's console."""
