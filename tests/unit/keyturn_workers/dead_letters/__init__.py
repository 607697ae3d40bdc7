"""Tests of `keyturn_workers.dead_letters`."""
