"""An in-memory storage for tests of everything above the storage port (SPEC 8.4, 10)."""
