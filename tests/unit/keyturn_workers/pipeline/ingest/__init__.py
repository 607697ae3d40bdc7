"""Unit tests of ingest: notifications, listings and records in memory."""
