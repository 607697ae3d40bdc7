"""Unit tests of `keyturn_workers.pipeline.control`."""
