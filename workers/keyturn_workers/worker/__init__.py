"""One worker process: its wiring, its life, and what it measures (SPEC 6.2, 10, 11)."""
