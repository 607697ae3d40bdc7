"""Tests of the audit trail's writers on a real broker."""
