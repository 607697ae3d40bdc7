"""The storage against real servers, and against the one in memory (SPEC 8.4, 10)."""
