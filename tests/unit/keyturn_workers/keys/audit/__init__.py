"""Tests of the audit trail's writers."""
