"""TLS with real certificates, on real servers (SPEC 9.7, 11)."""
