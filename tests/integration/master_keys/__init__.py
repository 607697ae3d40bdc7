"""Master keys that are held elsewhere, against real servers (SPEC 2.2)."""
