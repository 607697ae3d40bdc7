"""Pages that only read."""
