"""Unit tests of `keyturn_workers.control`."""
