"""Tests of `keyturn_workers.reports.dead_letters`."""
