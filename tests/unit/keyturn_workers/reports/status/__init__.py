"""Tests of what the records and the objects of a bucket say."""
