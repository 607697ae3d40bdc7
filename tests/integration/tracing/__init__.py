"""Traces on real servers."""
