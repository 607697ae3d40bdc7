"""What tests of everything above the storage port use instead of a real bucket (SPEC 8.4, 10)."""
