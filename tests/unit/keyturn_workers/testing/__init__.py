"""The in-memory storage, as far as the shared suite of the port does not test it."""
