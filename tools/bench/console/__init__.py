"""What the console takes, and what it costs the workers (SPEC 16)."""
