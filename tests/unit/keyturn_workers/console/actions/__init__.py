"""Tests of what the console may do."""
