"""Unit tests of `keyturn_workers.console.model`."""
