"""Tests of keyrings and their marks on real servers."""
