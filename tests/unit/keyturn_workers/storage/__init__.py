"""The storage without a server."""
