"""What a worker does with aiormq's channels, against a real broker (SPEC 6.2)."""
