"""Tests of `keyturn_workers.console.dead`."""
