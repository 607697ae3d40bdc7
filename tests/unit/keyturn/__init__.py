"""Tests of the package that publishers and readers install."""
