"""Customer keys in their stores, against real servers (SPEC 2.6)."""
